// Sixteen 32-bit lanes in one AVX-512 register. Needs F, BW, VL, DQ and VNNI (Ice Lake, Zen 4 and later); products of bf16
// have an instruction of their own where the file is compiled with BF16 (Zen 4, Sapphire Rapids and later).
#pragma once
#ifndef OPENGLM_EMULATED  // dev/emulate_avx512.h has come first
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace openglm {
namespace {

struct Simd {
    static constexpr int kTileRows = 6, kTileBlocks = 2;  // 12 sums and 12 results in 32 registers
    static constexpr int kQueries = 8;                    // of attention, in registers together
    static constexpr int kInt8Offset = 0;                 // weights enter `dot8` as they are, unsigned

    using F = __m512;
    using I = __m512i;

    static F zero() { return _mm512_setzero_ps(); }
    static F set(float x) { return _mm512_set1_ps(x); }
    static F load(const float* p) { return _mm512_loadu_ps(p); }
    static F load(const float* p, int n) { return _mm512_maskz_loadu_ps(mask(n), p); }
    static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
    static void store(float* p, F x, int n) { _mm512_mask_storeu_ps(p, mask(n), x); }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F abs(F a) { return _mm512_abs_ps(a); }
    static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static float sum(F a) { return _mm512_reduce_add_ps(a); }
    static float largest(F a) { return _mm512_reduce_max_ps(a); }
    // x * 2^n for whole n
    static F scale2(F x, F n) { return _mm512_scalef_ps(x, n); }
    static F halfs(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
    static F bf16s(const uint16_t* p) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
    }
    static F int8s(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }

    static I set(int32_t x) { return _mm512_set1_epi32(x); }
    static I add(I a, I b) { return _mm512_add_epi32(a, b); }
    static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
    static int32_t sum(I a) { return _mm512_reduce_add_epi32(a); }
    // Rounds to nearest even, as `round`; stores the low bytes.
    static I to_int(F a) { return _mm512_cvtps_epi32(a); }
    static void store8(int8_t* p, I a) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(a)); }

    // 64 bytes of weights; four columns of 16 rows.
    static I load8(const uint8_t* p) { return _mm512_loadu_si512(p); }
    static I low(I a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
    static I high(I a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
    static I four(const int8_t* p) {
        int32_t x;
        std::memcpy(&x, p, 4);
        return _mm512_set1_epi32(x);
    }
    // Column j of each lane's 64 bytes as floats: INT4 less 8 (j < 8), INT8 less 128 (j < 4).
    static F nibble(I bytes, int j) {
        const F values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
        return _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, j < 4 ? 8 * j : 8 * j - 28), values);  // looks at 4 bits
    }
    static F byte(I bytes, int j) {
        const I turned = _mm512_xor_si512(bytes, _mm512_set1_epi8((char)0x80));
        return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(turned, 24 - 8 * j), 24));
    }
    // Adds four products per lane: weights unsigned (0..15; 0..255 for dot8), activations signed. Sums of up to 32 columns of
    // INT4 may have a type of their own: where there is no such instruction, they are of 16 bits and begin at zero.
    using Short = I;
    static Short begin(I sum) { return sum; }
    static Short dot4(Short sum, I w, I x) { return _mm512_dpbusd_epi32(sum, w, x); }
    static I end(I, Short sum) { return sum; }
    static I dot8(I sum, I w, I x) { return _mm512_dpbusd_epi32(sum, w, x); }

    // Pairs of bf16: adds two products per lane.
#ifdef __AVX512BF16__
    static constexpr const char* kName = "avx512-bf16";
    using P = __m512i;
    static P load_pairs(const uint16_t* p) { return _mm512_loadu_si512(p); }
    static P two(const uint16_t* p) { return four((const int8_t*)p); }
    static F dot_bf16(F sum, P w, P x) { return _mm512_dpbf16_ps(sum, (__m512bh)w, (__m512bh)x); }
    static void store_bf16(uint16_t* p, F x) { _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(x)); }
#else
    static constexpr const char* kName = "avx512-vnni";
    struct P {
        F even, odd;
    };
    static P load_pairs(const uint16_t* p) {
        P found;
        split_pairs(p, found.even, found.odd);
        return found;
    }
    static P two(const uint16_t* p) {
        const I both = four((const int8_t*)p);
        return {_mm512_castsi512_ps(_mm512_slli_epi32(both, 16)), _mm512_castsi512_ps(_mm512_and_si512(both, set((int)0xffff0000)))};
    }
    static F dot_bf16(F sum, P w, P x) { return fma(w.even, x.even, fma(w.odd, x.odd, sum)); }
    static void store_bf16(uint16_t* p, F x) {
        const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), set(1));
        const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, set(0x7fff)));  // to nearest even
        _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
    }
#endif

    // The same as floats.
    static void split_pairs(const uint16_t* p, F& even, F& odd) {
        const I pairs = _mm512_loadu_si512(p);
        even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
        odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, set((int)0xffff0000)));
    }

    static void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

   private:
    static __mmask16 mask(int n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }
};

}  // namespace
}  // namespace openglm
