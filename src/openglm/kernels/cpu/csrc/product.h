// Products of float32 activations with packed weights, from preparing the activations to sharing out the blocks of rows.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "rows.h"

namespace openglm {

// Weights that are applied to the same activations; their results stand side by side.
class Linear {
   public:
    Linear(Kind kind, bool exact, int64_t inputs, int64_t columns, int64_t group)
        : kind_(kind), exact_(exact), inputs_(inputs), columns_(columns), group_(group) {}

    void add(int64_t rows, const uint8_t* values, const uint16_t* scale, const uint16_t* minimum, const float* row_scale, const float* bias) {
        parts_.push_back({kind_, exact_, rows, columns_, inputs_, group_, values, scale, minimum, row_scale, bias});
        first_.push_back(blocks_);
        offset_.push_back(rows_);
        blocks_ += parts_.back().blocks();
        rows_ += rows;
    }

    // (rows, inputs) float32 -> (rows, sum of N) float32
    void run(const float* x, int64_t rows, float* y) const {
        const Activations act = prepare(x, rows);
        // A piece takes some ten microseconds: short enough to share fairly, long enough to stream.
        const int64_t step = rows == 1 ? std::clamp<int64_t>((1 << 19) / parts_[0].stride(), 1, 16) : rows < kFewRows ? 4 : 2;
        const int64_t pieces = (blocks_ + step - 1) / step;
        pool()->run(pieces, [&](int64_t piece) {
            const int64_t first = piece * step, last = std::min(blocks_, first + step);
            for (size_t i = 0; i < parts_.size(); i++) {
                const int64_t from = std::max(first, first_[i]) - first_[i];
                const int64_t to = std::min(last - first_[i], parts_[i].blocks());
                if (from < to) ops->linear(parts_[i], act, from, to, y + offset_[i], rows_);
            }
        });
    }

    int64_t inputs() const { return inputs_; }
    int64_t outputs() const { return rows_; }

   private:
    static constexpr int64_t kFewRows = 16;

    Activations prepare(const float* x, int64_t rows) const {
        thread_local std::vector<uint8_t> memory;
        const bool floats = kind_ == Kind::kF32 || kind_ == Kind::kF16 || exact_;
        const int64_t groups = columns_ / group_, width = floats ? 4 : kind_ == Kind::kBf16 ? 2 : 1;
        const bool integers = kind_ == Kind::kInt4 || kind_ == Kind::kInt8;
        if (floats && !integers && inputs_ == columns_) return {rows, columns_, group_, nullptr, nullptr, nullptr, nullptr, const_cast<float*>(x)};
        uint8_t* base = scratch(memory, rows * (columns_ * width + groups * 8) + 64);
        base += -(uintptr_t)base & 63;
        Activations act{rows, columns_, group_, (int8_t*)base, nullptr, nullptr, (uint16_t*)base, (float*)base};
        act.scale = (float*)(base + rows * columns_ * width);
        act.sum = (int32_t*)(act.scale + rows * groups);
        over_rows(rows, columns_, [&](int64_t first, int64_t last) { ops->prepare(kind_, exact_, x, inputs_, act, first, last); });
        return act;
    }

    Kind kind_;
    bool exact_;
    int64_t inputs_, columns_, group_, blocks_ = 0, rows_ = 0;
    std::vector<Matrix> parts_;
    std::vector<int64_t> first_, offset_;
};

}  // namespace openglm
