// Attention over keys and values in pages. Queries that share a key/value head are mixed together, so that each page is
// read, and widened to float32, once for all of them.
//
// A query's result is computed page by page with a running maximum (Milakov and Gimelshein, Online normalizer calculation for
// softmax), always from page 0 on: it does not depend on the queries beside it, nor on how a prompt was cut.
#pragma once
#include <algorithm>
#include <cmath>

#include "core.h"
#include "elementwise.h"

namespace openglm {
namespace {

constexpr int kGroup = 4;  // queries that are kept in registers together

// Sixteen numbers of a page, as float32.
inline Simd::F widen(Kind kind, const uint8_t* page, int64_t at) {
    if (kind == Kind::kF32) return Simd::load((const float*)page + at);
    if (kind == Kind::kBf16) return Simd::bf16s((const uint16_t*)page + at);
    return Simd::int8s((const int8_t*)page + at);
}

struct Running {
    float largest, sum;
};

// Scores of G queries with the 32 keys of a page, which lie as (D, 32).
template <int G>
void score(const AttentionTask& t, const float* const* queries, const float* page, float* scores) {
    Simd::F sum[G][2];
    for (int g = 0; g < G; g++) sum[g][0] = sum[g][1] = Simd::zero();
    for (int64_t d = 0; d < t.head_dim; d++) {
        const Simd::F first = Simd::load(page + d * kPageTokens), second = Simd::load(page + d * kPageTokens + 16);
        for (int g = 0; g < G; g++) {
            const Simd::F q = Simd::set(queries[g][d]);
            sum[g][0] = Simd::fma(first, q, sum[g][0]);
            sum[g][1] = Simd::fma(second, q, sum[g][1]);
        }
    }
    for (int g = 0; g < G; g++)
        for (int half = 0; half < 2; half++)
            Simd::store(scores + g * kPageTokens + 16 * half, Simd::mul(sum[g][half], Simd::set(t.scale)));
}

// Turns scores into weights relative to the running maximum; returns by what earlier sums shrink.
inline float weigh(float* scores, int64_t visible, Running& running) {
    std::fill(scores + visible, scores + kPageTokens, -INFINITY);
    const Simd::F most = Simd::max(Simd::load(scores), Simd::load(scores + 16));
    const float largest = std::max(running.largest, Simd::largest(most));
    for (int half = 0; half < 2; half++) {
        float* part = scores + 16 * half;
        Simd::store(part, exponential(Simd::sub(Simd::load(part), Simd::set(largest))));
    }
    std::fill(scores + visible, scores + kPageTokens, 0.0f);
    const float shrink = running.largest == -INFINITY ? 0.0f : std::exp(running.largest - largest);
    running.sum = running.sum * shrink + Simd::sum(Simd::add(Simd::load(scores), Simd::load(scores + 16)));
    running.largest = largest;
    return shrink;
}

// Adds the values of a page, which lie as (32, D), under the weights of G queries.
template <int G>
void mix(const AttentionTask& t, const float* page, const float* weights, const float* shrink, float* const* out) {
    int64_t d = 0;
    for (; d < t.head_dim; d += 16) {
        const int n = (int)std::min<int64_t>(16, t.head_dim - d);
        Simd::F sum[G];
        for (int g = 0; g < G; g++) sum[g] = Simd::mul(Simd::load(out[g] + d, n), Simd::set(shrink[g]));
        for (int j = 0; j < kPageTokens; j++) {
            const Simd::F value = Simd::load(page + j * t.head_dim + d, n);
            for (int g = 0; g < G; g++) sum[g] = Simd::fma(value, Simd::set(weights[g * kPageTokens + j]), sum[g]);
        }
        for (int g = 0; g < G; g++) Simd::store(out[g] + d, sum[g], n);
    }
}

template <int G>
void visit(const AttentionTask& t, int64_t first, int64_t start, const float* keys, const float* values, Running* running) {
    float weights[G * kPageTokens], shrink[G];
    score<G>(t, t.queries + first, keys, weights);
    for (int g = 0; g < G; g++) {
        const int64_t visible = std::clamp<int64_t>(t.visible[first + g] - start, 0, kPageTokens);
        shrink[g] = visible ? weigh(weights + g * kPageTokens, visible, running[first + g]) : 1.0f;
        if (!visible) std::fill_n(weights + g * kPageTokens, kPageTokens, 0.0f);
    }
    mix<G>(t, values, weights, shrink, t.out + first);
}

inline int64_t bytes_per_number(Kind kind) { return kind == Kind::kF32 ? 4 : kind == Kind::kBf16 ? 2 : 1; }

// The keys of a page as float32 (D, 32). Those of tokens that are not there yet are any number.
inline void widen_keys(const AttentionTask& t, int64_t page, float* out) {
    const uint8_t* from = t.key_pages + page * t.page_stride * bytes_per_number(t.kind);
    for (int64_t i = 0; i < kPageTokens * t.head_dim; i += 16) Simd::store(out + i, widen(t.kind, from, i));
    if (!t.key_scales) return;
    const float* scales = t.key_scales + page * (t.page_stride / t.head_dim);
    for (int64_t i = 0; i < kPageTokens * t.head_dim; i += 16)
        Simd::store(out + i, Simd::mul(Simd::load(out + i), Simd::load(scales + i % kPageTokens)));
}

// The values of a page as float32 (32, D), zeros behind its `tokens`.
inline void widen_values(const AttentionTask& t, int64_t page, int64_t tokens, float* out) {
    const uint8_t* from = t.value_pages + page * t.page_stride * bytes_per_number(t.kind);
    for (int64_t i = 0; i < kPageTokens * t.head_dim; i += 16) Simd::store(out + i, widen(t.kind, from, i));
    if (t.value_scales) {
        const float* scales = t.value_scales + page * (t.page_stride / t.head_dim);
        for (int64_t j = 0; j < tokens; j++)
            for (int64_t d = 0; d < t.head_dim; d++) out[j * t.head_dim + d] *= scales[j];
    }
    std::fill(out + tokens * t.head_dim, out + kPageTokens * t.head_dim, 0.0f);
}

void attend(const AttentionTask& t) {
    float *keys = t.scratch, *values = keys + kPageTokens * t.head_dim;
    Running* running = (Running*)(values + kPageTokens * t.head_dim);
    for (int64_t i = 0; i < t.count; i++) {
        running[i] = {-INFINITY, 0.0f};
        std::fill_n(t.out[i], t.head_dim, 0.0f);
    }
    for (int64_t start = 0; start < t.keys; start += kPageTokens) {
        const int64_t page = t.pages[start / kPageTokens], tokens = std::min<int64_t>(kPageTokens, t.keys - start);
        widen_keys(t, page, keys);
        widen_values(t, page, tokens, values);
        int64_t i = 0;
        for (; i + kGroup <= t.count; i += kGroup) visit<kGroup>(t, i, start, keys, values, running);
        for (; i < t.count; i++) visit<1>(t, i, start, keys, values, running);
    }
    for (int64_t i = 0; i < t.count; i++) {
        const Simd::F inverse = Simd::set(running[i].sum > 0 ? 1.0f / running[i].sum : 0.0f);
        for (int64_t d = 0; d < t.head_dim; d += 16) {
            const int n = (int)std::min<int64_t>(16, t.head_dim - d);
            Simd::store(t.out[i] + d, Simd::mul(Simd::load(t.out[i] + d, n), inverse), n);
        }
    }
}

}  // namespace
}  // namespace openglm
