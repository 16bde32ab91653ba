// Norms and activations of one row of float32.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "core.h"

namespace openglm {
namespace {

// e^x to 2 units in the last place: 2^n e^r with |r| <= ln 2 / 2, e^r by its Taylor series to r^7.
inline Simd::F exponential(Simd::F x) {
    x = Simd::min(Simd::max(x, Simd::set(-104.0f)), Simd::set(89.0f));  // beyond, results are 0 and infinite
    const Simd::F n = Simd::round(Simd::mul(x, Simd::set(1.44269504f)));
    Simd::F r = Simd::fma(n, Simd::set(-0.693359375f), x);  // ln 2 in two parts, the first exact times n
    r = Simd::fma(n, Simd::set(2.12194440e-4f), r);
    Simd::F p = Simd::set(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = Simd::fma(p, r, Simd::set(c));
    return Simd::scale2(p, n);
}

// 1 / (1 + e^-x)
inline Simd::F sigmoid(Simd::F x) {
    return Simd::div(Simd::set(1.0f), Simd::add(Simd::set(1.0f), exponential(Simd::sub(Simd::zero(), x))));
}

// erf x, off by at most 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
inline Simd::F error_function(Simd::F x) {
    const Simd::F size = Simd::abs(x), one = Simd::set(1.0f);
    const Simd::F t = Simd::div(one, Simd::fma(Simd::set(0.3275911f), size, one));
    Simd::F p = Simd::set(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = Simd::fma(p, t, Simd::set(c));
    const Simd::F tail = Simd::mul(Simd::mul(p, t), exponential(Simd::sub(Simd::zero(), Simd::mul(size, size))));
    const Simd::F positive = Simd::sub(one, tail);
    // Sign of x: positive * x / |x|, and 0 at 0.
    return Simd::mul(positive, Simd::div(x, Simd::max(size, Simd::set(1e-30f))));
}

template <class Function>
void map(Function function, const float* gate, const float* up, float* out, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) {
        const int n = (int)std::min<int64_t>(16, count - i);
        Simd::F value = function(Simd::load(gate + i, n));
        if (up) value = Simd::mul(value, Simd::load(up + i, n));
        Simd::store(out + i, value, n);
    }
}

void activate(int family, const float* gate, const float* up, float* out, int64_t count) {
    const auto silu = [](Simd::F x) { return Simd::mul(x, sigmoid(x)); };
    const auto gelu_tanh = [](Simd::F x) {  // (1 + tanh z) / 2 = sigmoid 2 z
        const Simd::F cubic = Simd::mul(Simd::mul(x, x), Simd::set(0.044715f));
        const Simd::F z = Simd::mul(Simd::mul(x, Simd::set(0.79788456f)), Simd::add(Simd::set(1.0f), cubic));
        return Simd::mul(x, sigmoid(Simd::add(z, z)));
    };
    const auto gelu_erf = [](Simd::F x) {
        const Simd::F half = Simd::mul(x, Simd::set(0.5f));
        return Simd::fma(half, error_function(Simd::mul(x, Simd::set(0.70710678f))), half);
    };
    const auto gelu_sigmoid = [](Simd::F x) { return Simd::mul(x, sigmoid(Simd::mul(x, Simd::set(1.702f)))); };
    switch (family) {
        case 0: return map(silu, gate, up, out, count);
        case 1: return map(gelu_tanh, gate, up, out, count);
        case 2: return map(gelu_erf, gate, up, out, count);
        default: return map(gelu_sigmoid, gate, up, out, count);
    }
}

inline float total(const float* x, int64_t width, float shift, bool squares) {
    Simd::F sum = Simd::zero();
    const Simd::F minus = Simd::set(-shift);
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
        const Simd::F part = Simd::add(Simd::load(x + i), minus);
        sum = squares ? Simd::fma(part, part, sum) : Simd::add(sum, part);
    }
    float rest = 0;
    for (; i < width; i++) rest += squares ? (x[i] - shift) * (x[i] - shift) : x[i] - shift;
    return Simd::sum(sum) + rest;
}

void rms_norm(const float* x, const float* weight, float eps, float* out, int64_t width) {
    const float inverse = 1.0f / std::sqrt(total(x, width, 0.0f, true) / (float)width + eps);
    for (int64_t i = 0; i < width; i += 16) {
        const int n = (int)std::min<int64_t>(16, width - i);
        Simd::store(out + i, Simd::mul(Simd::mul(Simd::load(x + i, n), Simd::set(inverse)), Simd::load(weight + i, n)), n);
    }
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, float* out, int64_t width) {
    const float mean = total(x, width, 0.0f, false) / (float)width;
    const float inverse = 1.0f / std::sqrt(total(x, width, mean, true) / (float)width + eps);
    for (int64_t i = 0; i < width; i += 16) {
        const int n = (int)std::min<int64_t>(16, width - i);
        const Simd::F normed = Simd::mul(Simd::sub(Simd::load(x + i, n), Simd::set(mean)), Simd::set(inverse));
        Simd::store(out + i, Simd::fma(normed, Simd::load(weight + i, n), Simd::load(bias + i, n)), n);
    }
}

float largest(const float* x, int64_t count) {
    Simd::F best = Simd::set(-std::numeric_limits<float>::infinity());
    uint32_t nans = 0;  // apart: what a maximum does with them depends on the processor
    for (int64_t i = 0; i < count; i++) nans |= x[i] != x[i];
    if (nans) return std::numeric_limits<float>::quiet_NaN();
    int64_t i = 0;
    for (; i + 16 <= count; i += 16) best = Simd::max(best, Simd::load(x + i));
    float all = Simd::largest(best);
    for (; i < count; i++) all = std::max(all, x[i]);
    return all;
}

double exponentials(const float* x, int64_t count, float shift, float temperature, float* out) {
    constexpr int64_t kPiece = 1024;  // summed in float32, and the pieces in float64
    const Simd::F minus = Simd::set(-shift), by = Simd::set(temperature);
    const auto value = [&](Simd::F x) { return exponential(Simd::div(Simd::add(x, minus), by)); };
    double total = 0;
    int64_t i = 0;
    while (i + 16 <= count) {
        Simd::F sum = Simd::zero();
        for (const int64_t end = std::min(count - 15, i + kPiece); i < end; i += 16) {
            const Simd::F each = value(Simd::load(x + i));
            sum = Simd::add(sum, each);
            if (out) Simd::store(out + i, each);
        }
        total += Simd::sum(sum);
    }
    float rest[16];
    Simd::store(rest, value(Simd::load(x + i, (int)(count - i))));
    for (int j = 0; i < count; i++, j++) {
        total += rest[j];
        if (out) out[i] = rest[j];
    }
    return total;
}

// In parts that the processor adds side by side.
double sum(const float* x, int64_t count) {
    double parts[8] = {}, all = 0;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int j = 0; j < 8; j++) parts[j] += x[i + j];
    for (; i < count; i++) all += x[i];
    for (double part : parts) all += part;
    return all;
}

double sum_below(float bar, const float* rank, const float* sizes, int64_t count) {
    const auto add = [=](auto size) {
        float parts[16] = {};
        double all = 0;
        int64_t i = 0;
        for (; i + 16 <= count; i += 16)
            for (int j = 0; j < 16; j++) {
                const float each = size(i + j);
                parts[j] += rank[i + j] <= bar ? each : 0.0f;
            }
        for (; i < count; i++) all += rank[i] <= bar ? size(i) : 0.0f;
        for (float part : parts) all += part;
        return all;
    };
    return sizes ? add([=](int64_t i) { return sizes[i]; }) : add([](int64_t) { return 1.0f; });
}

int32_t read(const uint8_t* from, int64_t bytes) {
    Simd::I sum[4] = {Simd::set(0), Simd::set(0), Simd::set(0), Simd::set(0)};
    for (int64_t i = 0; i < bytes; i += 256)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            Simd::prefetch(from + i + j * 64 + 8192);
            sum[j] = Simd::add(sum[j], Simd::load8(from + i + j * 64));
        }
    return Simd::sum(Simd::add(Simd::add(sum[0], sum[1]), Simd::add(sum[2], sum[3])));
}

}  // namespace
}  // namespace openglm
