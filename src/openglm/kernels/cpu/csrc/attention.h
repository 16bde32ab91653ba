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
    constexpr int kAtOnce = Simd::kQueries > 4 ? 2 : 1;  // halves of a page, as the registers allow
    for (int half = 0; half < 2; half += kAtOnce) {
        Simd::F sum[G][kAtOnce];
        for (int g = 0; g < G; g++)
            for (int h = 0; h < kAtOnce; h++) sum[g][h] = Simd::zero();
        const float* keys = page + 16 * half;
#pragma GCC unroll 2
        for (int64_t d = 0; d < t.head_dim; d++, keys += kPageTokens) {
            Simd::F key[kAtOnce];
            for (int h = 0; h < kAtOnce; h++) key[h] = Simd::load(keys + 16 * h);
#pragma GCC unroll 8
            for (int g = 0; g < G; g++) {
                const Simd::F q = Simd::set(queries[g][d]);
                for (int h = 0; h < kAtOnce; h++) sum[g][h] = Simd::fma(key[h], q, sum[g][h]);
            }
        }
        for (int g = 0; g < G; g++)
            for (int h = 0; h < kAtOnce; h++)
                Simd::store(scores + g * kPageTokens + 16 * (half + h), Simd::mul(sum[g][h], Simd::set(t.scale)));
    }
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

// Adds 16 elements, or `n` at the end of a head, of the values of a page, which lie as (32, D), under the weights of G queries.
template <int G, class Load>
inline __attribute__((always_inline)) void mix_lanes(const AttentionTask& t, const float* values, const float* weights, const float* shrink,
                                                     Simd::F (&sum)[G], Load load) {
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) sum[g] = Simd::mul(sum[g], Simd::set(shrink[g]));
    for (int j = 0; j < kPageTokens; j++) {
        const Simd::F value = load(values + j * t.head_dim);
#pragma GCC unroll 8
        for (int g = 0; g < G; g++) sum[g] = Simd::fma(value, Simd::set(weights[g * kPageTokens + j]), sum[g]);
    }
}

template <int G>
void mix(const AttentionTask& t, const float* page, const float* weights, const float* shrink, float* const* out) {
    Simd::F sum[G];
    int64_t d = 0;
    for (; d + 16 <= t.head_dim; d += 16) {
        for (int g = 0; g < G; g++) sum[g] = Simd::load(out[g] + d);
        mix_lanes<G>(t, page + d, weights, shrink, sum, [](const float* p) { return Simd::load(p); });
        for (int g = 0; g < G; g++) Simd::store(out[g] + d, sum[g]);
    }
    if (d == t.head_dim) return;
    const int n = (int)(t.head_dim - d);
    for (int g = 0; g < G; g++) sum[g] = Simd::load(out[g] + d, n);
    mix_lanes<G>(t, page + d, weights, shrink, sum, [n](const float* p) { return Simd::load(p, n); });
    for (int g = 0; g < G; g++) Simd::store(out[g] + d, sum[g], n);
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
        for (; i + Simd::kQueries <= t.count; i += Simd::kQueries) visit<Simd::kQueries>(t, i, start, keys, values, running);
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
