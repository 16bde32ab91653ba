// Sixteen 32-bit lanes in four NEON registers. Needs ARMv8.2 with the dot product (Graviton 2, Apple M1 and later).
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace openglm {
namespace {

struct Simd {
    static constexpr const char* kName = "neon";
    static constexpr int kTileRows = 2, kTileBlocks = 1;  // 8 + 8 of 32 registers hold sums and results
    static constexpr int kQueries = 4;  // of attention, in registers together
    static constexpr int kInt8Offset = 128;               // weights enter `dot8` signed, less by this

    struct F {
        float32x4_t v[4];
    };
    struct I {
        int32x4_t v[4];
    };
    template <class T, class G>
    static T each(G g) {
        return {{g(0), g(1), g(2), g(3)}};
    }

    static F zero() { return set(0.0f); }
    static F set(float x) {
        return each<F>([&](int) { return vdupq_n_f32(x); });
    }
    static F load(const float* p) {
        return each<F>([&](int i) { return vld1q_f32(p + 4 * i); });
    }
    static F load(const float* p, int n) {
        float all[16] = {};
        std::memcpy(all, p, sizeof(float) * (n < 16 ? n : 16));
        return load(all);
    }
    static void store(float* p, F x) {
        for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
    }
    static void store(float* p, F x, int n) {
        float all[16];
        store(all, x);
        std::memcpy(p, all, sizeof(float) * (n < 16 ? n : 16));
    }
    static F add(F x, F y) {
        return each<F>([&](int i) { return vaddq_f32(x.v[i], y.v[i]); });
    }
    static F sub(F x, F y) {
        return each<F>([&](int i) { return vsubq_f32(x.v[i], y.v[i]); });
    }
    static F mul(F x, F y) {
        return each<F>([&](int i) { return vmulq_f32(x.v[i], y.v[i]); });
    }
    static F div(F x, F y) {
        return each<F>([&](int i) { return vdivq_f32(x.v[i], y.v[i]); });
    }
    static F fma(F x, F y, F z) {
        return each<F>([&](int i) { return vfmaq_f32(z.v[i], x.v[i], y.v[i]); });
    }
    static F max(F x, F y) {
        return each<F>([&](int i) { return vmaxq_f32(x.v[i], y.v[i]); });
    }
    static F min(F x, F y) {
        return each<F>([&](int i) { return vminq_f32(x.v[i], y.v[i]); });
    }
    static F abs(F x) {
        return each<F>([&](int i) { return vabsq_f32(x.v[i]); });
    }
    static F round(F x) {
        return each<F>([&](int i) { return vrndnq_f32(x.v[i]); });
    }
    static float sum(F x) { return vaddvq_f32(vaddq_f32(vaddq_f32(x.v[0], x.v[1]), vaddq_f32(x.v[2], x.v[3]))); }
    static float largest(F x) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[1]), vmaxq_f32(x.v[2], x.v[3]))); }
    static F scale2(F x, F n) {
        // In two steps, so that results below the normal range do not become zero early.
        return each<F>([&](int i) {
            const int32x4_t whole = vcvtnq_s32_f32(n.v[i]), half = vshrq_n_s32(whole, 1);
            return vmulq_f32(vmulq_f32(x.v[i], power2(half)), power2(vsubq_s32(whole, half)));
        });
    }
    static F halfs(const uint16_t* p) {
        return each<F>([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
    }
    static F bf16s(const uint16_t* p) {
        return each<F>([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
    }
    static F int8s(const int8_t* p) {
        const int8x16_t all = vld1q_s8(p);
        const int16x8_t first = vmovl_s8(vget_low_s8(all)), second = vmovl_s8(vget_high_s8(all));
        return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(first))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(first))),
                 vcvtq_f32_s32(vmovl_s16(vget_low_s16(second))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(second)))}};
    }

    static I set(int32_t x) {
        return each<I>([&](int) { return vdupq_n_s32(x); });
    }
    static I add(I x, I y) {
        return each<I>([&](int i) { return vaddq_s32(x.v[i], y.v[i]); });
    }
    static F to_float(I x) {
        return each<F>([&](int i) { return vcvtq_f32_s32(x.v[i]); });
    }
    static int32_t sum(I x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.v[0], x.v[1]), vaddq_s32(x.v[2], x.v[3]))); }
    static I to_int(F x) {
        return each<I>([&](int i) { return vcvtnq_s32_f32(x.v[i]); });
    }
    static void store8(int8_t* p, I x) {
        int32_t all[16];
        for (int i = 0; i < 4; i++) vst1q_s32(all + 4 * i, x.v[i]);
        for (int i = 0; i < 16; i++) p[i] = (int8_t)all[i];
    }

    static I load8(const uint8_t* p) {
        return each<I>([&](int i) { return vreinterpretq_s32_u8(vld1q_u8(p + 16 * i)); });
    }
    static I low(I x) {
        return each<I>([&](int i) { return vandq_s32(x.v[i], vdupq_n_s32(0x0f0f0f0f)); });
    }
    static I high(I x) {
        return each<I>([&](int i) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(x.v[i]), 4)); });
    }
    static I four(const int8_t* p) {
        int32_t x;
        std::memcpy(&x, p, 4);
        return set(x);
    }
    // Column j of each lane's 64 bytes as floats: INT4 less 8 (j < 8), INT8 less 128 (j < 4).
    static F nibble(I bytes, int j) {
        const int32x4_t up = vdupq_n_s32(j < 4 ? 28 - 8 * j : 56 - 8 * j);
        return each<F>([&](int i) {
            const int32x4_t turned = veorq_s32(bytes.v[i], vdupq_n_s32((int)0x88888888));
            return vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(turned, up), 28));
        });
    }
    static F byte(I bytes, int j) {
        const int32x4_t up = vdupq_n_s32(24 - 8 * j);
        return each<F>([&](int i) {
            const int32x4_t turned = veorq_s32(bytes.v[i], vdupq_n_s32((int)0x80808080));
            return vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(turned, up), 24));
        });
    }

    using Short = I;
    static Short begin(I sum) { return sum; }
    static I end(I, Short sum) { return sum; }
    static Short dot4(Short sum, I w, I x) {
        return each<I>([&](int i) { return vdotq_s32(sum.v[i], vreinterpretq_s8_s32(w.v[i]), vreinterpretq_s8_s32(x.v[i])); });
    }
    static I dot8(I sum, I w, I x) {
        return each<I>([&](int i) {
            const int8x16_t s = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_s32(w.v[i]), vdupq_n_u8(0x80)));
            return vdotq_s32(sum.v[i], s, vreinterpretq_s8_s32(x.v[i]));
        });
    }

    struct P {
        F even, odd;
    };
    static void split_pairs(const uint16_t* p, F& even, F& odd) {
        for (int i = 0; i < 4; i++) {
            const uint32x4_t both = vreinterpretq_u32_u16(vld1q_u16(p + 8 * i));
            even.v[i] = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
            odd.v[i] = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xffff0000)));
        }
    }
    static P load_pairs(const uint16_t* p) {
        P found;
        split_pairs(p, found.even, found.odd);
        return found;
    }
    static P two(const uint16_t* p) {
        const uint32_t x = (uint32_t)p[0] << 16, y = (uint32_t)p[1] << 16;
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

    static void prefetch(const void* p) { __builtin_prefetch(p); }

   private:
    static float32x4_t power2(int32x4_t n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); }
};

}  // namespace
}  // namespace openglm
