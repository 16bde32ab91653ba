// Sixteen 32-bit lanes in two AVX2 registers. Needs AVX2, FMA and F16C (Haswell and Zen 1 and later).
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace openglm {
namespace {

struct Simd {
    static constexpr const char* kName = "avx2";
    static constexpr int kTileRows = 4, kTileBlocks = 1;  // 8 of 16 registers hold sums
    static constexpr int kQueries = 4;                    // of attention, in registers together
    static constexpr int kInt8Offset = 128;               // weights enter `dot8` signed, less by this

    struct F {
        __m256 a, b;
    };
    struct I {
        __m256i a, b;
    };

    static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static F load(const float* p, int n) {
        float all[16] = {};
        std::memcpy(all, p, sizeof(float) * (n < 16 ? n : 16));
        return load(all);
    }
    static void store(float* p, F x) {
        _mm256_storeu_ps(p, x.a);
        _mm256_storeu_ps(p + 8, x.b);
    }
    static void store(float* p, F x, int n) {
        float all[16];
        store(all, x);
        std::memcpy(p, all, sizeof(float) * (n < 16 ? n : 16));
    }
    static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
    static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
    static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    static F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
    static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
    static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
    static F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
    static F abs(F x) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
    }
    static F round(F x) {
        constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
    }
    static float sum(F x) {
        float all[8], total = 0;
        _mm256_storeu_ps(all, _mm256_add_ps(x.a, x.b));
        for (float each : all) total += each;
        return total;
    }
    static float largest(F x) {
        float all[8];
        _mm256_storeu_ps(all, _mm256_max_ps(x.a, x.b));
        float best = all[0];
        for (float each : all) best = each > best ? each : best;
        return best;
    }
    static F scale2(F x, F n) { return {scale2(x.a, n.a), scale2(x.b, n.b)}; }
    static F halfs(const uint16_t* p) {
        return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
    }
    static F bf16s(const uint16_t* p) { return {bf16x8(p), bf16x8(p + 8)}; }
    static F int8s(const int8_t* p) {
        return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8))))};
    }

    static I set(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
    static I add(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
    static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
    static int32_t sum(I x) {
        uint32_t all[8], total = 0;  // unsigned: NaN becomes -2^31, and wraps as the vectors do
        _mm256_storeu_si256((__m256i*)all, _mm256_add_epi32(x.a, x.b));
        for (uint32_t each : all) total += each;
        return (int32_t)total;
    }
    static I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
    static void store8(int8_t* p, I x) {
        int32_t all[16];
        _mm256_storeu_si256((__m256i*)all, x.a);
        _mm256_storeu_si256((__m256i*)(all + 8), x.b);
        for (int i = 0; i < 16; i++) p[i] = (int8_t)all[i];
    }

    static I load8(const uint8_t* p) {
        return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
    }
    static I low(I x) {
        const __m256i mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
    }
    static I high(I x) { return low({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
    static I four(const int8_t* p) {
        int32_t x;
        std::memcpy(&x, p, 4);
        return set(x);
    }
    // Column j of each lane's 64 bytes as floats: INT4 less 8 (j < 8), INT8 less 128 (j < 4).
    static F nibble(I bytes, int j) {
        const int up = j < 4 ? 28 - 8 * j : 56 - 8 * j;
        const __m256i sign = _mm256_set1_epi8((char)0x88);
        return {spread<28>(_mm256_xor_si256(bytes.a, sign), up), spread<28>(_mm256_xor_si256(bytes.b, sign), up)};
    }
    static F byte(I bytes, int j) {
        const __m256i sign = _mm256_set1_epi8((char)0x80);
        return {spread<24>(_mm256_xor_si256(bytes.a, sign), 24 - 8 * j), spread<24>(_mm256_xor_si256(bytes.b, sign), 24 - 8 * j)};
    }
    // Pairs of products are at most 2 * 15 * 127, and eight of them fit 16 bits: those of 32 columns. In dot8 they are at most
    // 2 * 128 * 127, and none can be added before they are widened.
    struct Short {
        __m256i a, b;
    };
    static Short begin(I) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static Short dot4(Short sum, I w, I x) {
        return {_mm256_add_epi16(sum.a, products(w.a, x.a)), _mm256_add_epi16(sum.b, products(w.b, x.b))};
    }
    static I end(I sum, Short more) {
        const __m256i one = _mm256_set1_epi16(1);
        return {_mm256_add_epi32(sum.a, _mm256_madd_epi16(more.a, one)), _mm256_add_epi32(sum.b, _mm256_madd_epi16(more.b, one))};
    }
    static I dot8(I sum, I w, I x) { return {add_signed(sum.a, w.a, x.a), add_signed(sum.b, w.b, x.b)}; }

    struct P {
        F even, odd;
    };
    static void split_pairs(const uint16_t* p, F& even, F& odd) {
        const I both = load8((const uint8_t*)p);
        even = {lower(both.a), lower(both.b)};
        odd = {upper(both.a), upper(both.b)};
    }
    static P load_pairs(const uint16_t* p) {
        P found;
        split_pairs(p, found.even, found.odd);
        return found;
    }
    static P two(const uint16_t* p) {
        uint32_t x, y;
        x = (uint32_t)p[0] << 16;
        y = (uint32_t)p[1] << 16;
        float even, odd;
        std::memcpy(&even, &x, 4);
        std::memcpy(&odd, &y, 4);
        return {set(even), set(odd)};
    }
    static F dot_bf16(F sum, P w, P x) { return fma(w.even, x.even, fma(w.odd, x.odd, sum)); }
    static void store_bf16(uint16_t* p, F x) {
        uint32_t all[16];
        store((float*)all, x);
        for (int i = 0; i < 16; i++) p[i] = (uint16_t)((all[i] + 0x7fff + (all[i] >> 16 & 1)) >> 16);  // to nearest even
    }

    static void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

   private:
    static __m256 scale2(__m256 x, __m256 n) {
        // In two steps, so that results below the normal range do not become zero early.
        const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
        return _mm256_mul_ps(_mm256_mul_ps(x, power2(half)), power2(_mm256_sub_epi32(whole, half)));
    }
    static __m256 power2(__m256i n) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
    }
    static __m256 bf16x8(const uint16_t* p) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
    }
    static __m256 lower(__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
    static __m256 upper(__m256i x) { return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000))); }
    template <int kDown>
    static __m256 spread(__m256i bits, int up) {
        return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(bits, up), kDown));
    }
    static __m256i add_dot(__m256i sum, __m256i w, __m256i x) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
    }
    // In the order of the source: GCC 12 makes many products first, and then lacks registers for the sums.
    static __m256i products(__m256i w, __m256i x) {
        __m256i found = _mm256_maddubs_epi16(w, x);
        asm volatile("" : "+x"(found));
        return found;
    }
    static __m256i add_signed(__m256i sum, __m256i w, __m256i x) {
        const __m256i s = _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80));
        return add_dot(sum, _mm256_abs_epi8(s), _mm256_sign_epi8(x, s));
    }
};

}  // namespace
}  // namespace openglm
