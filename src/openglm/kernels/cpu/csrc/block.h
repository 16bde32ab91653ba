// A transformer block around its attention: everything before it in one call, everything behind it in another.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>

#include "product.h"

namespace openglm {

// y = base + behind(part(n)) with n = before(x), for attention and for the MLP; base is x, or n times `residual_scale` (DeepNorm).
class Block {
   public:
    // Products: queries, keys and values side by side; what mixes heads; gate and up, or up; down. They outlive the block.
    Block(const Linear& qkv, const Linear& heads, const Linear& up, const Linear& down, int64_t rotated_heads, int64_t head_dim, bool interleaved,
          int family, bool gated, float residual_scale)
        : qkv_(qkv), heads_(heads), up_(up), down_(down), rotated_heads_(rotated_heads), head_dim_(head_dim), interleaved_(interleaved),
          activation_{family, gated, up.outputs() / (gated ? 2 : 1)}, residual_scale_(residual_scale) {}

    // The norm in front of attention (0), behind it (1), in front of the MLP (2), behind it (3); 1 and 3 may be missing.
    void set_norm(int place, const Norm& norm) { norms_[place] = norm; }

    // (rows, C) -> queries, keys and values (rows, H + 2 K, D), rotated unless `angles` is null.
    void before(const float* x, int64_t rows, const Angles* angles, float* mixed) const {
        const auto normed = numbers(rows * qkv_.inputs());
        (*norms_[0])(x, normed.get(), rows);
        qkv_.run(normed.get(), rows, mixed);
        if (angles) rotate(mixed, qkv_.outputs(), rows, rotated_heads_, head_dim_, *angles, interleaved_);
    }

    // x (rows, C) and what attention gave, (rows, H D) -> the block's output (rows, C).
    void behind(const float* x, const float* attended, int64_t rows, float* out) const {
        const int64_t width = heads_.outputs();
        const auto part = numbers(rows * width), normed = numbers(rows * width);
        heads_.run(attended, rows, part.get());
        if (residual_scale_) (*norms_[0])(x, normed.get(), rows);
        add(x, normed.get(), norms_[1], part.get(), rows, out);
        (*norms_[2])(out, normed.get(), rows);
        feed_forward(normed.get(), rows, part.get());
        add(out, normed.get(), norms_[3], part.get(), rows, out);
    }

   private:
    using Numbers = std::unique_ptr<float[]>;
    static Numbers numbers(int64_t count) { return Numbers(new float[count]); }  // not set to zero

    void feed_forward(const float* normed, int64_t rows, float* out) const {
        const auto inner = numbers(rows * up_.outputs()), active = numbers(rows * activation_.width);
        up_.run(normed, rows, inner.get());
        activation_(inner.get(), active.get(), rows);
        down_.run(active.get(), rows, out);
    }

    // `part` is normed in place; `out` may be `x`.
    void add(const float* x, const float* normed, const std::optional<Norm>& behind, float* part, int64_t rows, float* out) const {
        const int64_t width = heads_.outputs();
        if (behind) (*behind)(part, part, rows);
        const float* base = residual_scale_ ? normed : x;
        const float scale = residual_scale_ ? residual_scale_ : 1.0f;
        over_rows(rows, width, [&](int64_t first, int64_t last) {
            for (int64_t i = first * width; i < last * width; i++) out[i] = scale * base[i] + part[i];
        });
    }

    const Linear &qkv_, &heads_, &up_, &down_;
    int64_t rotated_heads_, head_dim_;
    bool interleaved_;
    Activation activation_;
    float residual_scale_;  // 0: none
    std::optional<Norm> norms_[4];
};

}  // namespace openglm
