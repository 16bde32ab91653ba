// The kernels as Python sees them. Addresses and sizes come as integers: the Python side has checked shapes and dtypes once,
// and a call costs a microsecond. Products and attention of many tokens release the interpreter lock.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "core.h"
#include "pool.h"

namespace nb = nanobind;

namespace openglm {
namespace {

std::vector<const Ops*> supported() {
    std::vector<const Ops*> found;
#if defined(OPENGLM_EMULATE)
    found = {ops_avx512_bf16(), ops_avx512_vnni(), ops_avx2()};
#elif defined(__x86_64__)
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    if (wide && __builtin_cpu_supports("avx512bf16")) found.push_back(ops_avx512_bf16());
    if (wide) found.push_back(ops_avx512_vnni());
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) found.push_back(ops_avx2());
#elif defined(__aarch64__) && defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found.push_back(ops_neon());
#elif defined(__aarch64__)
    found.push_back(ops_neon());  // Apple's all have them
#endif
    return found;
}

const Ops* ops = nullptr;

// A buffer of this thread that grows and stays.
template <class T>
T* scratch(std::vector<T>& buffer, int64_t count) {
    if ((int64_t)buffer.size() < count) buffer.resize(count);
    return buffer.data();
}

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

constexpr int64_t kLongRows = 16;  // from here on a call takes milliseconds, and others may run meanwhile

// Calls work(first, last) over ranges of rows that are worth a thread each.
template <class Work>
void over_rows(int64_t rows, int64_t numbers_per_row, Work work) {
    constexpr int64_t kWorthwhile = 1 << 15;  // numbers: some microseconds
    const int64_t step = std::max<int64_t>(1, kWorthwhile / std::max<int64_t>(1, numbers_per_row));
    pool()->run((rows + step - 1) / step, [&](int64_t piece) { work(piece * step, std::min(rows, (piece + 1) * step)); });
}

// Weights that are applied to the same activations; their results stand side by side.
class Linear {
   public:
    Linear(int kind, bool exact, int64_t inputs, int64_t columns, int64_t group)
        : kind_((Kind)kind), exact_(exact), inputs_(inputs), columns_(columns), group_(group) {}

    void add(int64_t rows, uintptr_t values, uintptr_t scale, uintptr_t minimum, uintptr_t row_scale, uintptr_t bias) {
        parts_.push_back({kind_, exact_, rows, columns_, inputs_, group_, at<const uint8_t>(values), at<const uint16_t>(scale),
                          at<const uint16_t>(minimum), at<const float>(row_scale), at<const float>(bias)});
        first_.push_back(blocks_);
        offset_.push_back(rows_);
        blocks_ += parts_.back().blocks();
        rows_ += rows;
    }

    // (rows, inputs) float32 -> (rows, sum of N) float32
    void run(uintptr_t x, int64_t rows, uintptr_t y) const {
        if (rows < kLongRows) return compute(at<const float>(x), rows, at<float>(y));
        nb::gil_scoped_release release;
        compute(at<const float>(x), rows, at<float>(y));
    }

    int64_t outputs() const { return rows_; }

   private:
    void compute(const float* x, int64_t rows, float* y) const {
        const Activations act = prepare(x, rows);
        // A piece takes some ten microseconds: short enough to share fairly, long enough to stream.
        const int64_t step = rows == 1 ? std::clamp<int64_t>((1 << 19) / parts_[0].stride(), 1, 16) : rows < kLongRows ? 4 : 2;
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

// Reads `bytes` with all threads; the sum of their 64-bit words, which nobody needs.
uint64_t stream(uintptr_t address, int64_t bytes) {
    constexpr int64_t kPiece = 1 << 20;
    std::atomic<uint64_t> sum{0};
    pool()->run(bytes / kPiece, [&](int64_t piece) {
        const uint64_t* words = at<const uint64_t>(address) + piece * kPiece / 8;
        uint64_t parts[8] = {};
        for (int64_t i = 0; i < kPiece / 8; i += 8) {
            __builtin_prefetch(words + i + 512);
            for (int j = 0; j < 8; j++) parts[j] += words[i + j];
        }
        for (uint64_t part : parts) sum += part;
    });
    return sum;
}

void rms_norm(uintptr_t x, uintptr_t weight, float eps, uintptr_t out, int64_t rows, int64_t width) {
    over_rows(rows, width, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) ops->rms_norm(at<float>(x) + i * width, at<float>(weight), eps, at<float>(out) + i * width, width);
    });
}

void layer_norm(uintptr_t x, uintptr_t weight, uintptr_t bias, float eps, uintptr_t out, int64_t rows, int64_t width) {
    over_rows(rows, width, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++)
            ops->layer_norm(at<float>(x) + i * width, at<float>(weight), at<float>(bias), eps, at<float>(out) + i * width, width);
    });
}

// (rows, width) -> (rows, width), or gate and up side by side (rows, 2 width) -> (rows, width)
void activate(int family, bool gated, uintptr_t x, uintptr_t out, int64_t rows, int64_t width) {
    over_rows(rows, 8 * width, [&](int64_t first, int64_t last) {  // an exponential costs as much as 8 numbers moved
        for (int64_t i = first; i < last; i++) {
            const float* gate = at<float>(x) + i * width * (gated ? 2 : 1);
            ops->activate(family, gate, gated ? gate + width : nullptr, at<float>(out) + i * width, width);
        }
    });
}

// Turns (rows, heads, head_dim) in place, `stride` floats from row to row, by angles (rows, planes * pairs).
void rotate(uintptr_t x, int64_t stride, int64_t rows, int64_t heads, int64_t head_dim, uintptr_t cosines, uintptr_t sines, int64_t planes,
            int64_t pairs, bool interleaved) {
    over_rows(rows, heads * head_dim, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; row++)
            for (int64_t head = 0; head < heads; head++)
                for (int64_t plane = 0; plane < planes; plane++) {
                    float* p = at<float>(x) + row * stride + head * head_dim + plane * 2 * pairs;
                    const float* c = at<float>(cosines) + (row * planes + plane) * pairs;
                    const float* s = at<float>(sines) + (row * planes + plane) * pairs;
                    const int64_t near = interleaved ? 2 : 1, far = interleaved ? 1 : pairs;
                    for (int64_t j = 0; j < pairs; j++) {
                        const float a = p[j * near], b = p[j * near + far];
                        p[j * near] = a * c[j] - b * s[j];
                        p[j * near + far] = b * c[j] + a * s[j];
                    }
                }
    });
}

// One layer's keys and values in pages; see paged_attention.py.
class Pages {
   public:
    Pages(int kind, int64_t heads, int64_t head_dim, uintptr_t keys, uintptr_t values, uintptr_t key_scales, uintptr_t value_scales)
        : kind_((Kind)kind), heads_(heads), head_dim_(head_dim), keys_(at<uint8_t>(keys)), values_(at<uint8_t>(values)),
          key_scales_(at<float>(key_scales)), value_scales_(at<float>(value_scales)) {}

    // Puts keys and values (N, heads, head_dim), `stride` floats from token to token, into slots page * 32 + place.
    void store(uintptr_t keys, uintptr_t values, int64_t stride, uintptr_t slots, int64_t count) const {
        over_rows(count, 8 * heads_ * head_dim_, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; i++)
                for (int64_t head = 0; head < heads_; head++) {
                    const int64_t slot = at<int64_t>(slots)[i], place = slot % kPageTokens, at_head = slot / kPageTokens * heads_ + head;
                    const int64_t base = at_head * kPageTokens * head_dim_, from = i * stride + head * head_dim_;
                    put(at<float>(keys) + from, keys_, key_scales_, base + place, kPageTokens, at_head * kPageTokens + place);
                    put(at<float>(values) + from, values_, value_scales_, base + place * head_dim_, 1, at_head * kPageTokens + place);
                }
        });
    }

    // Queries (N, query_heads, head_dim), `stride` floats from token to token, -> out (N, query_heads, head_dim).
    void attend(uintptr_t queries, int64_t stride, int64_t query_heads, uintptr_t starts, uintptr_t lengths, uintptr_t visible, uintptr_t pages,
                int64_t sequences, int64_t page_columns, uintptr_t out) const {
        if (at<int32_t>(starts)[sequences] < kLongRows)
            return mix(queries, stride, query_heads, starts, lengths, visible, pages, sequences, page_columns, out);
        nb::gil_scoped_release release;
        mix(queries, stride, query_heads, starts, lengths, visible, pages, sequences, page_columns, out);
    }

   private:
    void mix(uintptr_t queries, int64_t stride, int64_t query_heads, uintptr_t starts, uintptr_t lengths, uintptr_t visible, uintptr_t pages,
             int64_t sequences, int64_t page_columns, uintptr_t out) const {
        struct Piece {
            int64_t sequence, head, first, last;
        };
        std::vector<Piece> pieces;
        const int32_t *start = at<int32_t>(starts), *length = at<int32_t>(lengths), *seen = at<int32_t>(visible);
        const int64_t per_head = query_heads / heads_, tile = std::max<int64_t>(1, 64 / per_head);
        for (int64_t s = 0; s < sequences; s++)
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
                const int32_t index = length[p.sequence] - (int32_t)(start[p.sequence + 1] - i);  // of this token in its sequence
                const int32_t limit = std::max(seen[p.sequence], index + 1);
                most = std::max(most, limit);
                for (int64_t h = 0; h < per_head; h++) {
                    const int64_t head = p.head * per_head + h;
                    from.push_back(at<float>(queries) + i * stride + head * head_dim_);
                    to.push_back(at<float>(out) + (i * query_heads + head) * head_dim_);
                    limits.push_back(limit);
                }
            }
            const int64_t head_numbers = kPageTokens * head_dim_, bytes = kind_ == Kind::kF32 ? 4 : kind_ == Kind::kBf16 ? 2 : 1;
            AttentionTask task{};
            task.count = (int64_t)from.size(), task.head_dim = head_dim_;
            task.queries = from.data(), task.out = to.data(), task.visible = limits.data(), task.keys = most;
            task.kind = kind_, task.pages = at<int32_t>(pages) + p.sequence * page_columns;
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
            float largest = 0;
            for (int64_t d = 0; d < head_dim_; d++) largest = std::max(largest, std::fabs(from[d]));
            const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
            for (int64_t d = 0; d < head_dim_; d++) ((int8_t*)pages)[at_number + d * step] = (int8_t)std::nearbyint(from[d] * inverse);
            scales[at_scale] = largest / 127.0f;
        }
    }

    Kind kind_;
    int64_t heads_, head_dim_;
    uint8_t *keys_, *values_;
    float *key_scales_, *value_scales_;
};

std::vector<std::string> variants() {
    std::vector<std::string> names;
    for (const Ops* each : supported()) names.push_back(each->name);
    return names;
}

std::string variant() { return ops ? ops->name : ""; }

void use(const std::string& name) {
    for (const Ops* each : supported())
        if (name == each->name) {
            ops = each;
            return;
        }
    throw std::invalid_argument("this processor cannot run the kernels for " + name);
}

}  // namespace
}  // namespace openglm

NB_MODULE(_native, m) {
    using namespace openglm;
    const auto all = supported();
    ops = all.empty() ? nullptr : all[0];
    nb::set_leak_warnings(false);  // layers that live until the process ends are no leak
    m.doc() = "Compiled CPU kernels; see openglm.kernels.cpu.";
    m.def("variants", &variants, "Instruction sets that this processor can run, the fastest first.");
    m.def("variant", &variant, "The one in use; empty if there is none.");
    m.def("use", &use, "Chooses one of `variants`; ValueError for any other.");
    m.def("set_num_threads", &set_num_threads, "Threads of the pool, the caller included.");
    m.def("num_threads", [] { return pool()->size(); }, "Threads of the pool, the caller included.");
    m.def("stream", &stream, "Reads memory with all threads, for measuring its bandwidth.");
    m.def("rms_norm", &rms_norm);
    m.def("layer_norm", &layer_norm);
    m.def("activate", &activate);
    m.def("rotate", &rotate);
    nb::class_<Linear>(m, "Linear")
        .def(nb::init<int, bool, int64_t, int64_t, int64_t>())
        .def("add", &Linear::add)
        .def("run", &Linear::run)
        .def_prop_ro("outputs", &Linear::outputs);
    nb::class_<Pages>(m, "Pages")
        .def(nb::init<int, int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t>())
        .def("store", &Pages::store)
        .def("attend", &Pages::attend);
}
