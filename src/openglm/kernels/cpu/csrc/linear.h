// Products of activations with packed weights. Every result is one chain of additions in an order that does not depend on
// how many rows of activations there are: a token gets the same bits alone, in a batch, and in a long prompt.
#pragma once
#include <algorithm>
#include <cmath>

#include "core.h"

namespace openglm {
namespace {

constexpr int kPrefetchBytes = 8192;  // ahead of the weights of a single token: measured, 16 % at 84 GB/s

// int8 per group: scale = max |x| / 127, integers rounded to nearest even.
void quantize(const float* x, int64_t inputs, const Activations& out, int64_t row) {
    const int64_t groups = out.columns / out.group;
    for (int64_t g = 0; g < groups; g++) {
        const float* from = x + g * out.group;
        const int64_t left = inputs - g * out.group;
        int8_t* to = out.int8 + row * out.columns + g * out.group;
        Simd::F most = Simd::zero(), poison = Simd::zero();  // the latter is 0, or NaN after NaN and infinity
        for (int64_t i = 0; i < out.group && i < left; i += 16) {
            const Simd::F part = Simd::load(from + i, (int)std::min<int64_t>(left - i, 16));
            most = Simd::max(most, Simd::abs(part));
            poison = Simd::fma(part, Simd::zero(), poison);
        }
        const float largest = Simd::largest(most);
        const Simd::F inverse = Simd::set(largest > 0 ? 127.0f / largest : 0.0f);
        Simd::I sum = Simd::set(0);
        for (int64_t i = 0; i < out.group; i += 16) {
            Simd::F part = left > i ? Simd::load(from + i, (int)std::min<int64_t>(left - i, 16)) : Simd::zero();
            const Simd::I whole = Simd::to_int(Simd::mul(part, inverse));
            sum = Simd::add(sum, whole);
            Simd::store8(to + i, whole);
        }
        out.scale[row * groups + g] = largest / 127.0f + Simd::sum(poison);
        out.sum[row * groups + g] = Simd::sum(sum);
    }
}

// Sums of each group, for minima.
void add_up(const Activations& out, int64_t row) {
    const int64_t groups = out.columns / out.group;
    for (int64_t g = 0; g < groups; g++) {
        Simd::F sum = Simd::zero();
        for (int64_t i = 0; i < out.group; i += 16) sum = Simd::add(sum, Simd::load(out.f32 + row * out.columns + g * out.group + i));
        out.scale[row * groups + g] = Simd::sum(sum);
    }
}

void prepare(Kind kind, bool exact, const float* x, int64_t inputs, const Activations& out, int64_t first, int64_t last) {
    const bool integers = kind == Kind::kInt4 || kind == Kind::kInt8;
    for (int64_t row = first; row < last; row++) {
        const float* from = x + row * inputs;
        if (integers && !exact) {
            quantize(from, inputs, out, row);
            continue;
        }
        for (int64_t i = 0; i < out.columns; i += 16) {
            const int64_t left = inputs - i;
            const Simd::F part = left > 0 ? Simd::load(from + i, (int)std::min<int64_t>(left, 16)) : Simd::zero();
            if (kind == Kind::kBf16 && !exact)
                Simd::store_bf16(out.bf16 + row * out.columns + i, part);
            else
                Simd::store(out.f32 + row * out.columns + i, part);
        }
        if (integers) add_up(out, row);
    }
}

// Writes one block of one row, without the lanes that only fill it up.
inline void finish(const Matrix& w, int64_t block, Simd::F value, float* y) {
    const int64_t n = block * kBlockRows;
    const int count = (int)std::min<int64_t>(w.rows - n, kBlockRows);
    if (w.row_scale) value = Simd::mul(value, Simd::load(w.row_scale + n));
    if (w.bias) value = Simd::add(value, Simd::load(w.bias + n, count));
    Simd::store(y + n, value, count);
}

template <int M, int B>
struct Tile {
    Simd::F value[M][B];

    Tile() {
        for (int m = 0; m < M; m++)
            for (int b = 0; b < B; b++) value[m][b] = Simd::zero();
    }
    void write(const Matrix& w, int64_t block, float* y, int64_t stride) const {
        for (int m = 0; m < M; m++)
            for (int b = 0; b < B; b++) finish(w, block + b, value[m][b], y + m * stride);
    }
};

// Adds the products of 32 columns.
template <Kind kKind, int M, int B, bool kAhead>
inline __attribute__((always_inline)) void add_columns(const uint8_t* weights, int64_t block_bytes, const int8_t* act, int64_t columns,
                                                       Simd::I (&sum)[M][B]) {
    constexpr bool kNibbles = kKind == Kind::kInt4;
    Simd::Short part[M][B];
    for (int m = 0; m < M; m++)
        for (int b = 0; b < B; b++) part[m][b] = Simd::begin(sum[m][b]);
#pragma GCC unroll 1  // as a loop: unrolled, GCC 12 runs out of registers
    for (int k = 0; k < 32; k += kNibbles ? 8 : 4) {
#pragma GCC unroll 2
        for (int half = 0; half < (kNibbles ? 2 : 1); half++) {  // lower nibbles of 64 bytes, then the upper ones
            Simd::I four_columns[B];
            for (int b = 0; b < B; b++) {
                const uint8_t* from = weights + b * block_bytes + k * (kNibbles ? 8 : 16);
                const Simd::I bytes = Simd::load8(from);
                if (kAhead && !half) Simd::prefetch(from + kPrefetchBytes);
                four_columns[b] = !kNibbles ? bytes : half ? Simd::high(bytes) : Simd::low(bytes);
            }
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                const Simd::I x = Simd::four(act + m * columns + k + 4 * half);
                for (int b = 0; b < B; b++) {
                    if (kNibbles)
                        part[m][b] = Simd::dot4(part[m][b], four_columns[b], x);
                    else
                        sum[m][b] = Simd::dot8(sum[m][b], four_columns[b], x);
                }
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int b = 0; b < B; b++)
            if (kNibbles) sum[m][b] = Simd::end(sum[m][b], part[m][b]);
}

// M rows from `row` on, times B blocks of weights from `block` on.
template <Kind kKind, int M, int B, bool kAhead>
void integer_tile(const Matrix& w, const Activations& x, int64_t block, int64_t row, float* y, int64_t stride) {
    constexpr int kStep = kKind == Kind::kInt4 ? 8 : 4;  // columns in 64 bytes
    const int64_t groups = w.columns / w.group, block_bytes = w.stride();
    // Unsigned, since it may wrap where activations were no numbers; their scale is NaN.
    const uint32_t zero = kKind == Kind::kInt4 ? (w.minimum ? 0 : 8) : (w.minimum ? 0 : 128) - Simd::kInt8Offset;
    const uint8_t* weights = w.values + block * block_bytes;
    Tile<M, B> tile;
    for (int64_t g = 0; g < groups; g++) {
        const int8_t* act = x.int8 + row * x.columns + g * w.group;
        Simd::I sum[M][B];
#pragma GCC unroll 8
        for (int m = 0; m < M; m++)
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) sum[m][b] = Simd::set((int32_t)(0u - zero * (uint32_t)x.sum[(row + m) * groups + g]));
        for (int64_t k = 0; k < w.group; k += 32) {
            add_columns<kKind, M, B, kAhead>(weights, block_bytes, act + k, x.columns, sum);
            weights += 64 * 32 / kStep;
        }
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) {
            const int64_t at = ((block + b) * groups + g) * kBlockRows;
            const Simd::F scale = w.scale ? Simd::halfs(w.scale + at) : Simd::set(1.0f);
#pragma GCC unroll 8
            for (int m = 0; m < M; m++) {
                const float act_scale = x.scale[(row + m) * groups + g];
                const Simd::F both = Simd::mul(scale, Simd::set(act_scale));
                tile.value[m][b] = Simd::fma(Simd::to_float(sum[m][b]), both, tile.value[m][b]);
                if (w.minimum) {
                    const float total = act_scale * (float)x.sum[(row + m) * groups + g];
                    tile.value[m][b] = Simd::fma(Simd::halfs(w.minimum + at), Simd::set(total), tile.value[m][b]);
                }
            }
        }
    }
    tile.write(w, block, y + row * stride, stride);
}

// The same with activations as they are: weights become floats in registers.
template <Kind kKind, int M, int B, bool kAhead>
void exact_tile(const Matrix& w, const Activations& x, int64_t block, int64_t row, float* y, int64_t stride) {
    constexpr bool kNibbles = kKind == Kind::kInt4;
    constexpr int kStep = kNibbles ? 8 : 4;  // columns in 64 bytes
    const int64_t groups = w.columns / w.group, block_bytes = w.stride();
    const uint8_t* weights = w.values + block * block_bytes;
    const float* act = x.f32 + row * x.columns;
    Tile<M, B> tile;
    for (int64_t g = 0; g < groups; g++) {
        Simd::F sum[M][B];
        for (int m = 0; m < M; m++)
            for (int b = 0; b < B; b++) sum[m][b] = Simd::zero();
#pragma GCC unroll 1
        for (int64_t k = g * w.group; k < (g + 1) * w.group; k += kStep, weights += 64) {
            Simd::I bytes[B];
            for (int b = 0; b < B; b++) {
                bytes[b] = Simd::load8(weights + b * block_bytes);
                if (kAhead) Simd::prefetch(weights + b * block_bytes + kPrefetchBytes);
            }
#pragma GCC unroll 8
            for (int j = 0; j < kStep; j++) {
                Simd::F column[B];
                for (int b = 0; b < B; b++) column[b] = kNibbles ? Simd::nibble(bytes[b], j) : Simd::byte(bytes[b], j);
#pragma GCC unroll 8
                for (int m = 0; m < M; m++)
                    for (int b = 0; b < B; b++) sum[m][b] = Simd::fma(column[b], Simd::set(act[m * x.columns + k + j]), sum[m][b]);
            }
        }
        for (int b = 0; b < B; b++) {
            const int64_t at = ((block + b) * groups + g) * kBlockRows;
            const Simd::F scale = w.scale ? Simd::halfs(w.scale + at) : Simd::set(1.0f);
            for (int m = 0; m < M; m++) {
                tile.value[m][b] = Simd::fma(sum[m][b], scale, tile.value[m][b]);
                if (w.minimum) {  // integers entered less by `middle`
                    const Simd::F middle = Simd::set(kNibbles ? 8.0f : 128.0f), total = Simd::set(x.scale[(row + m) * groups + g]);
                    tile.value[m][b] = Simd::fma(Simd::fma(scale, middle, Simd::halfs(w.minimum + at)), total, tile.value[m][b]);
                }
            }
        }
    }
    tile.write(w, block, y + row * stride, stride);
}

template <int M, int B, bool kAhead>
void bf16_tile(const Matrix& w, const Activations& x, int64_t block, int64_t row, float* y, int64_t stride) {
    const int64_t block_bytes = w.stride();
    const uint8_t* weights = w.values + block * block_bytes;
    const uint16_t* act = x.bf16 + row * x.columns;
    Tile<M, B> tile;
    for (int64_t k = 0; k < w.columns; k += 2, weights += 64) {
        Simd::P pairs[B];
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) {
            pairs[b] = Simd::load_pairs((const uint16_t*)(weights + b * block_bytes));
            if (kAhead) Simd::prefetch(weights + b * block_bytes + kPrefetchBytes);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
            const Simd::P two = Simd::two(act + m * x.columns + k);
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) tile.value[m][b] = Simd::dot_bf16(tile.value[m][b], pairs[b], two);
        }
    }
    tile.write(w, block, y + row * stride, stride);
}

// bfloat16 weights and activations as they are.
template <int M, int B, bool kAhead>
void exact_bf16_tile(const Matrix& w, const Activations& x, int64_t block, int64_t row, float* y, int64_t stride) {
    const int64_t block_bytes = w.stride();
    const uint8_t* weights = w.values + block * block_bytes;
    const float* act = x.f32 + row * x.columns;
    Tile<M, B> tile;
    for (int64_t k = 0; k < w.columns; k += 2, weights += 64) {
        Simd::F column[2][B];
        for (int b = 0; b < B; b++) {
            Simd::split_pairs((const uint16_t*)(weights + b * block_bytes), column[0][b], column[1][b]);
            if (kAhead) Simd::prefetch(weights + b * block_bytes + kPrefetchBytes);
        }
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++)
#pragma GCC unroll 8
            for (int m = 0; m < M; m++)
                for (int b = 0; b < B; b++) tile.value[m][b] = Simd::fma(column[j][b], Simd::set(act[m * x.columns + k + j]), tile.value[m][b]);
    }
    tile.write(w, block, y + row * stride, stride);
}

// Half-precision weights and activations as they are; 64 bytes have two columns of 16 rows.
template <int M, int B, bool kAhead>
void f16_tile(const Matrix& w, const Activations& x, int64_t block, int64_t row, float* y, int64_t stride) {
    const int64_t block_bytes = w.stride();
    const uint8_t* weights = w.values + block * block_bytes;
    const float* act = x.f32 + row * x.columns;
    Tile<M, B> tile;
#pragma GCC unroll 2
    for (int64_t k = 0; k < w.columns; k++, weights += 32) {
        Simd::F column[B];
        for (int b = 0; b < B; b++) {
            column[b] = Simd::halfs((const uint16_t*)(weights + b * block_bytes));
            if (kAhead && !(k & 1)) Simd::prefetch(weights + b * block_bytes + kPrefetchBytes);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; m++)
            for (int b = 0; b < B; b++) tile.value[m][b] = Simd::fma(column[b], Simd::set(act[m * x.columns + k]), tile.value[m][b]);
    }
    tile.write(w, block, y + row * stride, stride);
}

template <int M, int B, bool kAhead>
void f32_tile(const Matrix& w, const Activations& x, int64_t block, int64_t row, float* y, int64_t stride) {
    const int64_t block_bytes = w.stride();
    const uint8_t* weights = w.values + block * block_bytes;
    const float* act = x.f32 + row * x.columns;
    Tile<M, B> tile;
#pragma GCC unroll 4
    for (int64_t k = 0; k < w.columns; k++, weights += 64) {
        Simd::F column[B];
#pragma GCC unroll 8
        for (int b = 0; b < B; b++) {
            column[b] = Simd::load((const float*)(weights + b * block_bytes));
            if (kAhead) Simd::prefetch(weights + b * block_bytes + kPrefetchBytes);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; m++)
#pragma GCC unroll 8
            for (int b = 0; b < B; b++) tile.value[m][b] = Simd::fma(column[b], Simd::set(act[m * x.columns + k]), tile.value[m][b]);
    }
    tile.write(w, block, y + row * stride, stride);
}

template <Kind kKind, bool kExact, int M, int B, bool kAhead>
void any_tile(const Matrix& w, const Activations& x, int64_t block, int64_t row, float* y, int64_t stride) {
    if constexpr (kKind == Kind::kBf16 && kExact)
        exact_bf16_tile<M, B, kAhead>(w, x, block, row, y, stride);
    else if constexpr (kKind == Kind::kBf16)
        bf16_tile<M, B, kAhead>(w, x, block, row, y, stride);
    else if constexpr (kKind == Kind::kF16)
        f16_tile<M, B, kAhead>(w, x, block, row, y, stride);
    else if constexpr (kKind == Kind::kF32)
        f32_tile<M, B, kAhead>(w, x, block, row, y, stride);
    else if constexpr (kExact)
        exact_tile<kKind, M, B, kAhead>(w, x, block, row, y, stride);
    else
        integer_tile<kKind, M, B, kAhead>(w, x, block, row, y, stride);
}

// All rows of activations times B blocks: tiles of the full height, then of what is left.
template <Kind kKind, bool kExact, int B>
void columns(const Matrix& w, const Activations& x, int64_t block, float* y, int64_t stride) {
    int64_t row = 0;
    for (; row + Simd::kTileRows <= x.rows; row += Simd::kTileRows) any_tile<kKind, kExact, Simd::kTileRows, B, false>(w, x, block, row, y, stride);
    if constexpr (Simd::kTileRows > 4)
        for (; row + 4 <= x.rows; row += 4) any_tile<kKind, kExact, 4, B, false>(w, x, block, row, y, stride);
    if constexpr (Simd::kTileRows > 2)
        for (; row + 2 <= x.rows; row += 2) any_tile<kKind, kExact, 2, B, false>(w, x, block, row, y, stride);
    for (; row < x.rows; row++) any_tile<kKind, kExact, 1, B, false>(w, x, block, row, y, stride);
}

template <Kind kKind, bool kExact>
void blocks(const Matrix& w, const Activations& x, int64_t first, int64_t last, float* y, int64_t stride) {
    int64_t block = first;
    if (x.rows == 1) {  // bound by memory: one stream of weights, read ahead
        for (; block < last; block++) any_tile<kKind, kExact, 1, 1, true>(w, x, block, 0, y, stride);
        return;
    }
    for (; block + Simd::kTileBlocks <= last; block += Simd::kTileBlocks) columns<kKind, kExact, Simd::kTileBlocks>(w, x, block, y, stride);
    if constexpr (Simd::kTileBlocks > 1)
        for (; block < last; block++) columns<kKind, kExact, 1>(w, x, block, y, stride);
}

void linear(const Matrix& w, const Activations& x, int64_t first, int64_t last, float* y, int64_t stride) {
    switch (w.kind) {
        case Kind::kInt4: return (w.exact ? blocks<Kind::kInt4, true> : blocks<Kind::kInt4, false>)(w, x, first, last, y, stride);
        case Kind::kInt8: return (w.exact ? blocks<Kind::kInt8, true> : blocks<Kind::kInt8, false>)(w, x, first, last, y, stride);
        case Kind::kBf16: return (w.exact ? blocks<Kind::kBf16, true> : blocks<Kind::kBf16, false>)(w, x, first, last, y, stride);
        case Kind::kF32: return blocks<Kind::kF32, true>(w, x, first, last, y, stride);
        case Kind::kF16: return blocks<Kind::kF16, true>(w, x, first, last, y, stride);
    }
}

}  // namespace
}  // namespace openglm
