// The choice of a token: from the logits of a vocabulary to probabilities, and from these to one of them. openglm/kernels/sampling.py has
// each filter in plain torch.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

#include "rows.h"

namespace openglm {

struct Filters {
    float temperature;   // above 0
    int64_t top_k;       // 0: all
    double top_p;        // 1: all
    float min_p;         // 0: all
    double typical_p;    // 1: all
};

// log of the sum of e^x; NaN where there is a NaN or a positive infinity, -infinity where nothing is above it.
inline double log_sum_exp(const float* x, int64_t count) {
    const float largest = ops->largest(x, count);
    if (largest == std::numeric_limits<float>::infinity()) return std::nan("");
    if (!std::isfinite(largest)) return largest;
    return largest + std::log(ops->exponentials(x, count, largest, 1.0f, nullptr));
}

// Where the first of the largest numbers stands; 0 where all are NaN.
inline int64_t best(const float* x, int64_t count) {
    const int64_t place = std::find(x, x + count, ops->largest(x, count)) - x;
    return place < count ? place : 0;
}

// Filters know tokens by rank, the lowest first, and by weight: e^((logit - largest) / temperature), 0 once they are out.
struct Candidate {
    float rank;
    int32_t token;
    float weight;
};

inline bool lower(const Candidate& a, const Candidate& b) { return a.rank < b.rank || (a.rank == b.rank && a.token < b.token); }

// Collects the tokens up to a rank at which their weights (their number, if `counted`) sum to `needed`; all left, if they never do.
inline int64_t collect(const float* rank, const float* weight, int64_t count, double needed, bool counted, Candidate* out) {
    constexpr float kFarthest = 128;    // e^-104 is 0 already
    constexpr double kRounding = 1e-4;  // more than sums of float32 are off by
    float bar = 1;
    while (bar <= kFarthest && ops->sum_below(bar, rank, counted ? nullptr : weight, count) < needed * (1 + kRounding)) bar *= 2;
    if (bar > kFarthest) bar = std::numeric_limits<float>::max();
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++)
        if (rank[i] <= bar && weight[i] > 0) out[found++] = {rank[i], (int32_t)i, weight[i]};
    return found;
}

// Puts first, in any order, the lowest up to the one with which their weights sum to `needed`; how many.
inline int64_t smallest_set(Candidate* all, int64_t count, double needed) {
    Candidate *first = all, *last = all + count;  // the border lies between
    double taken = 0;                             // in front of `first`
    constexpr int64_t kFew = 32;
    while (last - first > kFew) {
        Candidate* middle = first + (last - first) / 2;
        std::nth_element(first, middle, last, lower);
        const double half = std::accumulate(first, middle, 0.0, [](double sum, const Candidate& each) { return sum + each.weight; });
        if (taken + half >= needed) last = middle;
        else taken += half, first = middle;
    }
    std::sort(first, last, lower);
    for (; first < last && taken < needed; first++) taken += first->weight;
    return first - all;
}

// The weights of a vocabulary while filters work on them.
struct Left {
    int64_t count;
    float* weight;
    double total;
    Candidate* candidates;  // room for `count`

    void keep(int64_t kept) {
        std::fill(weight, weight + count, 0.0f);
        total = 0;
        for (int64_t i = 0; i < kept; i++) {
            weight[candidates[i].token] = candidates[i].weight;
            total += candidates[i].weight;
        }
    }
    // The k lowest, and those as low as the last of them.
    void keep_number(const float* rank, int64_t k) {
        const int64_t found = collect(rank, weight, count, (double)k, true, candidates);
        if (found <= k) return;
        std::nth_element(candidates, candidates + k - 1, candidates + found, lower);
        const float last = candidates[k - 1].rank;
        keep(std::partition(candidates + k, candidates + found, [last](const Candidate& each) { return each.rank == last; }) - candidates);
    }
    // The lowest that have this share of the total.
    void keep_share(const float* rank, double share) {
        const double needed = share * total;
        const int64_t found = collect(rank, weight, count, needed, false, candidates);
        keep(smallest_set(candidates, found, needed));
    }
    void keep_above(float least) {
        for (int64_t i = 0; i < count; i++) weight[i] = weight[i] < least ? 0 : weight[i];
        total = ops->sum(weight, count);
    }
};

// Probabilities of the logits `x`, one of which at least is above -infinity, under all filters in turn; they sum to 1.
inline void probabilities(const float* x, int64_t count, const Filters& by, float* out) {
    static thread_local std::vector<Candidate> candidates;
    static thread_local std::vector<float> ranks;
    const float largest = ops->largest(x, count);
    Left left{count, out, ops->exponentials(x, count, largest, by.temperature, out), scratch(candidates, count)};
    float* rank = scratch(ranks, count);
    const float inverse = 1 / by.temperature;
    if (by.top_k || by.top_p < 1 || by.typical_p < 1)
        for (int64_t i = 0; i < count; i++) rank[i] = (largest - x[i]) * inverse;  // -log of the weight
    if (by.top_k) left.keep_number(rank, by.top_k);
    if (by.top_p < 1) left.keep_share(rank, by.top_p);
    if (by.min_p > 0) left.keep_above(by.min_p);  // the likeliest is left, and has 1
    if (by.typical_p < 1) {
        // |-log p - entropy|; the entropy is the mean of -log p, and log(total) is in both.
        double mean = 0;
        for (int64_t i = 0; i < count; i++)
            if (out[i] > 0) mean += (double)out[i] * rank[i];
        mean /= left.total;
        for (int64_t i = 0; i < count; i++) rank[i] = (float)std::fabs(rank[i] - mean);
        left.keep_share(rank, by.typical_p);
    }
    const float each = (float)(1 / left.total);
    for (int64_t i = 0; i < count; i++) out[i] *= each;
}

// The token at `place`, in [0, 1), of the distribution function: the first whose probability ends behind it.
inline int64_t draw(const float* p, int64_t count, double place) {
    constexpr int64_t kPiece = 256;
    const auto piece = [&](int64_t first) { return ops->sum(p + first, std::min(kPiece, count - first)); };
    double total = 0, end = 0;
    for (int64_t i = 0; i < count; i += kPiece) total += piece(i);
    place *= total;
    for (int64_t i = 0; i < count; i += kPiece) {
        const double here = piece(i);
        if (end + here <= place) {
            end += here;
            continue;
        }
        for (int64_t j = i; j < std::min(count, i + kPiece); j++)
            if (p[j] > 0 && (end += p[j]) > place) return j;
    }
    while (count > 1 && p[count - 1] <= 0) count--;  // rounding put the place behind them all
    return count - 1;
}

}  // namespace openglm
