// Work over rows of activations: norms, activations, rotations, spread over the pool.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core.h"
#include "pool.h"

namespace openglm {

inline const Ops* ops = nullptr;  // of the instruction set in use

// A buffer of this thread that grows and stays.
template <class T>
T* scratch(std::vector<T>& buffer, int64_t count) {
    if ((int64_t)buffer.size() < count) buffer.resize(count);
    return buffer.data();
}

// Calls work(first, last) over ranges of rows that are worth a thread each.
template <class Work>
void over_rows(int64_t rows, int64_t numbers_per_row, Work work) {
    constexpr int64_t kWorthwhile = 1 << 15;  // numbers: some microseconds
    const int64_t step = std::max<int64_t>(1, kWorthwhile / std::max<int64_t>(1, numbers_per_row));
    pool()->run((rows + step - 1) / step, [&](int64_t piece) { work(piece * step, std::min(rows, (piece + 1) * step)); });
}

// RMSNorm, or LayerNorm where there is a bias; `out` may be `x`.
struct Norm {
    const float *weight, *bias;
    float eps;
    int64_t width;

    void row(const float* x, float* out) const {
        if (bias) ops->layer_norm(x, weight, bias, eps, out, width);
        else ops->rms_norm(x, weight, eps, out, width);
    }
    void operator()(const float* x, float* out, int64_t rows) const {
        over_rows(rows, width, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; i++) row(x + i * width, out + i * width);
        });
    }
};

// An activation function: of (rows, width), or of gate and up side by side, (rows, 2 width); to (rows, width).
struct Activation {
    int family;  // see elementwise.h
    bool gated;
    int64_t width;

    void operator()(const float* x, float* out, int64_t rows) const {
        over_rows(rows, 8 * width, [&](int64_t first, int64_t last) {  // an exponential costs as much as 8 numbers moved
            for (int64_t i = first; i < last; i++) {
                const float* gate = x + i * width * (gated ? 2 : 1);
                ops->activate(family, gate, gated ? gate + width : nullptr, out + i * width, width);
            }
        });
    }
};

// Angles of each row: (rows, planes, pairs).
struct Angles {
    const float *cosines, *sines;
    int64_t planes, pairs;
};

// Turns the first `heads` of (rows, stride / head_dim, head_dim) in place.
inline void rotate(float* x, int64_t stride, int64_t rows, int64_t heads, int64_t head_dim, const Angles& by, bool interleaved) {
    const int64_t near = interleaved ? 2 : 1, far = interleaved ? 1 : by.pairs;
    over_rows(rows, heads * head_dim, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++)
            for (int64_t head = 0; head < heads; head++)
                for (int64_t plane = 0; plane < by.planes; plane++) {
                    float* p = x + row * stride + head * head_dim + plane * 2 * by.pairs;
                    const float* c = by.cosines + (row * by.planes + plane) * by.pairs;
                    const float* s = by.sines + (row * by.planes + plane) * by.pairs;
                    for (int64_t j = 0; j < by.pairs; j++) {
                        const float a = p[j * near], b = p[j * near + far];
                        p[j * near] = a * c[j] - b * s[j];
                        p[j * near + far] = b * c[j] + a * s[j];
                    }
                }
    });
}

}  // namespace openglm
