// Keys and values in pages: storing, and attention over them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "rows.h"

namespace openglm {

// Who is who in a packed batch; see `Segments` in paged_attention.py.
struct Segments {
    const int32_t *starts, *lengths, *visible, *pages;
    int64_t sequences, page_columns;
};

// One layer's keys and values in pages; see paged_attention.py.
class Pages {
   public:
    Pages(Kind kind, int64_t heads, int64_t head_dim, uint8_t* keys, uint8_t* values, float* key_scales, float* value_scales)
        : kind_(kind), heads_(heads), head_dim_(head_dim), keys_(keys), values_(values), key_scales_(key_scales), value_scales_(value_scales) {}

    // Puts keys and values (count, heads, head_dim), `stride` floats from token to token, into slots page * 32 + place.
    void store(const float* keys, const float* values, int64_t stride, const int64_t* slots, int64_t count) const {
        over_rows(count, 8 * heads_ * head_dim_, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; i++)
                for (int64_t head = 0; head < heads_; head++) {
                    const int64_t place = slots[i] % kPageTokens, at_head = slots[i] / kPageTokens * heads_ + head;
                    const int64_t base = at_head * kPageTokens * head_dim_, from = i * stride + head * head_dim_;
                    put(keys + from, keys_, key_scales_, base + place, kPageTokens, at_head * kPageTokens + place);
                    put(values + from, values_, value_scales_, base + place * head_dim_, 1, at_head * kPageTokens + place);
                }
        });
    }

    // Queries (N, query_heads, head_dim), `stride` floats from token to token, -> out (N, query_heads, head_dim).
    void attend(const float* queries, int64_t stride, int64_t query_heads, const Segments& who, float* out) const {
        struct Piece {
            int64_t sequence, head, first, last;
        };
        std::vector<Piece> pieces;
        const int32_t* start = who.starts;
        const int64_t per_head = query_heads / heads_, tile = std::max<int64_t>(1, 64 / per_head);
        for (int64_t s = 0; s < who.sequences; s++)
            for (int64_t first = start[s]; first < start[s + 1]; first += tile)
                for (int64_t head = 0; head < heads_; head++) pieces.push_back({s, head, first, std::min<int64_t>(start[s + 1], first + tile)});
        std::reverse(pieces.begin(), pieces.end());  // the longest first
        pool()->run((int64_t)pieces.size(), [&](int64_t number) {
            const Piece p = pieces[number];
            thread_local std::vector<const float*> from;
            thread_local std::vector<float*> to;
            thread_local std::vector<int32_t> limits;
            thread_local std::vector<float> buffer;
            from.clear(), to.clear(), limits.clear();
            int32_t most = 0;
            for (int64_t i = p.first; i < p.last; i++) {
                const int32_t index = who.lengths[p.sequence] - (int32_t)(start[p.sequence + 1] - i);  // of this token in its sequence
                const int32_t limit = std::max(who.visible[p.sequence], index + 1);
                most = std::max(most, limit);
                for (int64_t h = 0; h < per_head; h++) {
                    const int64_t head = p.head * per_head + h;
                    from.push_back(queries + i * stride + head * head_dim_);
                    to.push_back(out + (i * query_heads + head) * head_dim_);
                    limits.push_back(limit);
                }
            }
            const int64_t head_numbers = kPageTokens * head_dim_, bytes = kind_ == Kind::kF32 ? 4 : kind_ == Kind::kBf16 ? 2 : 1;
            AttentionTask task{};
            task.count = (int64_t)from.size(), task.head_dim = head_dim_;
            task.queries = from.data(), task.out = to.data(), task.visible = limits.data(), task.keys = most;
            task.kind = kind_, task.pages = who.pages + p.sequence * who.page_columns;
            task.key_pages = keys_ + p.head * head_numbers * bytes, task.value_pages = values_ + p.head * head_numbers * bytes;
            task.key_scales = key_scales_ ? key_scales_ + p.head * kPageTokens : nullptr;
            task.value_scales = value_scales_ ? value_scales_ + p.head * kPageTokens : nullptr;
            task.page_stride = heads_ * head_numbers;
            task.scale = 1.0f / std::sqrt((float)head_dim_);
            task.scratch = scratch(buffer, 2 * head_numbers + 2 * task.count);
            ops->attend(task);
        });
    }

    // One vector into a page, rounded to what the page holds.
    void put(const float* from, uint8_t* pages, float* scales, int64_t at_number, int64_t step, int64_t at_scale) const {
        if (kind_ == Kind::kF32) {
            for (int64_t d = 0; d < head_dim_; d++) ((float*)pages)[at_number + d * step] = from[d];
        } else if (kind_ == Kind::kBf16) {
            for (int64_t d = 0; d < head_dim_; d++) {
                uint32_t bits;
                std::memcpy(&bits, from + d, 4);
                const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
                const uint32_t rounded = is_nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);  // to nearest even
                ((uint16_t*)pages)[at_number + d * step] = (uint16_t)(rounded >> 16);
            }
        } else {
            float largest = 0, poison = 0;  // no integer is NaN, so the scale must be
            for (int64_t d = 0; d < head_dim_; d++) {
                largest = std::max(largest, std::fabs(from[d]));
                poison += from[d] * 0.0f;
            }
            const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
            for (int64_t d = 0; d < head_dim_; d++) {
                const float whole = std::nearbyint(from[d] * inverse);
                ((int8_t*)pages)[at_number + d * step] = std::isfinite(whole) ? (int8_t)whole : (int8_t)0;
            }
            scales[at_scale] = largest / 127.0f + poison;
        }
    }

    Kind kind_;
    int64_t heads_, head_dim_;
    uint8_t *keys_, *values_;
    float *key_scales_, *value_scales_;
};

}  // namespace openglm
