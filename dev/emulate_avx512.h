// The AVX-512 intrinsics of simd_avx512.h as loops, for dev/check_kernels.sh: results are those of the instructions, slowly, on
// any machine. Semantics: Intel Intrinsics Guide.
#pragma once
#define OPENGLM_EMULATED
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

struct __m512 {
    float v[16];
};
struct __m512i {
    uint32_t v[16];
};
struct __m256i {
    uint8_t b[32];
};
struct __m128i {
    uint8_t b[16];
};
using __m512bh = __m512i;
using __m256bh = __m256i;
using __mmask16 = uint16_t;
constexpr int _MM_FROUND_TO_NEAREST_INT = 0, _MM_FROUND_NO_EXC = 8, _MM_HINT_T0 = 3;

namespace emulated {

template <class F>
__m512 floats(F f) {
    __m512 r;
    for (int i = 0; i < 16; i++) r.v[i] = f(i);
    return r;
}
template <class F>
__m512i ints(F f) {
    __m512i r;
    for (int i = 0; i < 16; i++) r.v[i] = (uint32_t)f(i);
    return r;
}
template <class To, class From>
To bits(const From& x) {
    static_assert(sizeof(To) == sizeof(From));
    To r;
    std::memcpy(&r, &x, sizeof r);
    return r;
}
inline float half(uint16_t h) {
    const float size = (h & 0x7c00) == 0       ? std::ldexp((float)(h & 0x3ff), -24)
                       : (h & 0x7c00) == 0x7c00 ? ((h & 0x3ff) ? NAN : INFINITY)
                                                : std::ldexp((float)((h & 0x3ff) | 0x400), ((h >> 10) & 31) - 25);
    return h & 0x8000 ? -size : size;
}
inline int32_t to_int(float x) {
    return std::isfinite(x) && std::fabs(x) < 2147483648.0f ? (int32_t)std::nearbyint(x) : INT32_MIN;
}
inline float wide(uint32_t bf16) { return bits<float>(bf16 << 16); }

}  // namespace emulated

#define FLOATS(expression) emulated::floats([&](int i) { return expression; })
#define INTS(expression) emulated::ints([&](int i) { return expression; })
using F = __m512;
using I = __m512i;

inline F _mm512_setzero_ps() { return FLOATS((void(i), 0.0f)); }
inline F _mm512_set1_ps(float x) { return FLOATS((void(i), x)); }
template <class... X>
F _mm512_setr_ps(X... x) {
    return {{(float)x...}};
}
inline F _mm512_loadu_ps(const void* p) {
    F r;
    std::memcpy(&r, p, 64);
    return r;
}
inline F _mm512_maskz_loadu_ps(__mmask16 m, const float* p) { return FLOATS(m >> i & 1 ? p[i] : 0.0f); }
inline void _mm512_storeu_ps(float* p, F x) { std::memcpy(p, &x, 64); }
inline void _mm512_mask_storeu_ps(float* p, __mmask16 m, F x) {
    for (int i = 0; i < 16; i++)
        if (m >> i & 1) p[i] = x.v[i];
}
inline F _mm512_add_ps(F a, F b) { return FLOATS(a.v[i] + b.v[i]); }
inline F _mm512_sub_ps(F a, F b) { return FLOATS(a.v[i] - b.v[i]); }
inline F _mm512_mul_ps(F a, F b) { return FLOATS(a.v[i] * b.v[i]); }
inline F _mm512_div_ps(F a, F b) { return FLOATS(a.v[i] / b.v[i]); }
inline F _mm512_fmadd_ps(F a, F b, F c) { return FLOATS(std::fma(a.v[i], b.v[i], c.v[i])); }
inline F _mm512_max_ps(F a, F b) { return FLOATS(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F _mm512_min_ps(F a, F b) { return FLOATS(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F _mm512_abs_ps(F a) { return FLOATS(std::fabs(a.v[i])); }
inline F _mm512_roundscale_ps(F a, int) { return FLOATS(std::nearbyint(a.v[i])); }
inline F _mm512_scalef_ps(F a, F n) { return FLOATS((float)(a.v[i] * std::exp2((double)std::floor(n.v[i])))); }
inline float _mm512_reduce_add_ps(F a) {
    for (int n = 8; n; n /= 2)
        for (int i = 0; i < n; i++) a.v[i] += a.v[i + n];
    return a.v[0];
}
inline float _mm512_reduce_max_ps(F a) { return *std::max_element(a.v, a.v + 16); }
inline F _mm512_permutexvar_ps(I index, F a) { return FLOATS(a.v[index.v[i] & 15]); }
inline F _mm512_castsi512_ps(I a) { return emulated::bits<F>(a); }
inline I _mm512_castps_si512(F a) { return emulated::bits<I>(a); }
inline F _mm512_cvtepi32_ps(I a) { return FLOATS((float)(int32_t)a.v[i]); }
inline I _mm512_cvtps_epi32(F a) { return INTS(emulated::to_int(a.v[i])); }

inline __m256i _mm256_loadu_si256(const __m256i* p) { return *p; }
inline void _mm256_storeu_si256(__m256i* p, __m256i x) { std::memcpy(p, &x, 32); }
inline __m128i _mm_loadu_si128(const __m128i* p) { return *p; }
inline void _mm_storeu_si128(__m128i* p, __m128i x) { std::memcpy(p, &x, 16); }
inline uint16_t word(const __m256i& a, int i) { return (uint16_t)(a.b[2 * i] | a.b[2 * i + 1] << 8); }
inline F _mm512_cvtph_ps(__m256i a) { return FLOATS(emulated::half(word(a, i))); }
inline I _mm512_cvtepu16_epi32(__m256i a) { return INTS(word(a, i)); }
inline I _mm512_cvtepi8_epi32(__m128i a) { return INTS((int8_t)a.b[i]); }
inline __m128i _mm512_cvtepi32_epi8(I a) {
    __m128i r;
    for (int i = 0; i < 16; i++) r.b[i] = (uint8_t)a.v[i];
    return r;
}
inline __m256i _mm512_cvtepi32_epi16(I a) {
    __m256i r;
    for (int i = 0; i < 16; i++) r.b[2 * i] = (uint8_t)a.v[i], r.b[2 * i + 1] = (uint8_t)(a.v[i] >> 8);
    return r;
}

inline I _mm512_loadu_si512(const void* p) {
    I r;
    std::memcpy(&r, p, 64);
    return r;
}
inline I _mm512_setzero_si512() { return INTS((void(i), 0)); }
inline I _mm512_set1_epi32(int32_t x) { return INTS((void(i), x)); }
inline I _mm512_set1_epi8(char x) { return INTS((void(i), (uint8_t)x * 0x01010101u)); }
inline I _mm512_add_epi32(I a, I b) { return INTS(a.v[i] + b.v[i]); }
inline I _mm512_and_si512(I a, I b) { return INTS(a.v[i] & b.v[i]); }
inline I _mm512_xor_si512(I a, I b) { return INTS(a.v[i] ^ b.v[i]); }
inline I _mm512_slli_epi32(I a, unsigned n) { return INTS(n > 31 ? 0 : a.v[i] << n); }
inline I _mm512_srli_epi32(I a, unsigned n) { return INTS(n > 31 ? 0 : a.v[i] >> n); }
inline I _mm512_srai_epi32(I a, unsigned n) { return INTS((int32_t)a.v[i] >> (n > 31 ? 31 : n)); }
inline I _mm512_srli_epi16(I a, unsigned n) { return INTS((a.v[i] & 0xffff) >> n | (a.v[i] >> 16 >> n) << 16); }
inline int32_t _mm512_reduce_add_epi32(I a) {
    uint32_t sum = 0;
    for (uint32_t each : a.v) sum += each;
    return (int32_t)sum;
}
inline I _mm512_dpbusd_epi32(I sum, I a, I b) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 4; j++) sum.v[i] += (uint32_t)((int32_t)(a.v[i] >> 8 * j & 255) * (int8_t)(b.v[i] >> 8 * j));
    return sum;
}
inline F _mm512_dpbf16_ps(F sum, I a, I b) {
    for (int i = 0; i < 16; i++) {
        sum.v[i] += emulated::wide(a.v[i] >> 16) * emulated::wide(b.v[i] >> 16);
        sum.v[i] += emulated::wide(a.v[i] & 0xffff) * emulated::wide(b.v[i] & 0xffff);
    }
    return sum;
}
inline __m256bh _mm512_cvtneps_pbh(F a) {
    return _mm512_cvtepi32_epi16(INTS((emulated::bits<uint32_t>(a.v[i]) + 0x7fff + (emulated::bits<uint32_t>(a.v[i]) >> 16 & 1)) >> 16));
}
inline void _mm_prefetch(const char*, int) {}
#undef FLOATS
#undef INTS
