// What the kernels work on, and the table of kernels that each instruction set fills.
#pragma once
#include <cstdint>

namespace openglm {

constexpr int kBlockRows = 16;  // output rows that stand together; see packing.py

enum class Kind : int32_t { kInt4, kInt8, kBf16, kF32, kF16 };

// A weight (N, K), packed; columns are filled up to `columns`.
struct Matrix {
    Kind kind;
    bool exact;                 // activations are as they are, not rounded to int8 for integer weights or to bf16 for bf16 ones
    int64_t rows, columns;      // N, and K with what fills it up
    int64_t inputs;             // K
    int64_t group;              // columns that activations are quantized in
    const uint8_t* values;      // (N / 16, steps, 64)
    const uint16_t* scale;      // fp16 (N / 16, columns / group, 16), or null: a scale per row
    const uint16_t* minimum;    // the same, of asymmetric weights, or null
    const float* row_scale;     // (N,) filled up, or null
    const float* bias;          // (N,) or null

    int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
    // Bytes of one block of rows.
    int64_t stride() const {
        constexpr int64_t eighths[] = {64, 128, 256, 512, 256};
        return columns * eighths[(int)kind] / 8;
    }
};

// M rows of activations, prepared for weights of one kind: int8 with scales, bf16, or as they are.
struct Activations {
    int64_t rows, columns, group;
    int8_t* int8;        // (M, columns)
    float* scale;        // (M, columns / group), of the int8; of exact products, sums of the float32
    int32_t* sum;        // (M, columns / group), of the int8
    uint16_t* bf16;      // (M, columns)
    float* f32;          // (M, columns)
};

// Keys and values of one layer in pages: (num_pages, kv_heads, ...) with 32 tokens each.
constexpr int kPageTokens = 32;

struct AttentionTask {
    int64_t count, head_dim;
    const float* const* queries;  // `count` pointers to (D,)
    float* const* out;            // likewise
    const int32_t* visible;       // keys each query sees
    int64_t keys;                 // the largest of them
    Kind kind;                    // of keys and values: kF32, kBf16, kInt8
    const int32_t* pages;         // page numbers of the sequence
    const uint8_t *key_pages, *value_pages;    // of this head in page 0: keys (D, 32), values (32, D)
    const float *key_scales, *value_scales;    // likewise, of kInt8
    int64_t page_stride;          // numbers (not bytes) from one page to the next
    float scale;                  // of the scores
    float* scratch;               // 64 * D + 2 * count floats
};

struct Ops {
    const char* name;
    // Fills rows [first, last) of `out` from (M, inputs) floats.
    void (*prepare)(Kind kind, bool exact, const float* x, int64_t inputs, const Activations& out, int64_t first, int64_t last);
    // y[:, 16 b ... ] for blocks [first, last); y has `stride` floats per row.
    void (*linear)(const Matrix& w, const Activations& x, int64_t first, int64_t last, float* y, int64_t stride);
    // The variant `family` of activations: 0 SiLU, 1 GELU (tanh), 2 GELU (erf), 3 GELU (sigmoid).
    void (*activate)(int family, const float* gate, const float* up, float* out, int64_t count);
    void (*rms_norm)(const float* x, const float* weight, float eps, float* out, int64_t width);
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* out, int64_t width);
    // The largest of x; NaN if there is one.
    float (*largest)(const float* x, int64_t count);
    // e^((x - shift) / temperature), into `out` unless it is null; their sum.
    double (*exponentials)(const float* x, int64_t count, float shift, float temperature, float* out);
    double (*sum)(const float* x, int64_t count);
    // The sum, to float32's precision, of those `sizes` whose rank is at most `bar`; their number where `sizes` is null.
    double (*sum_below)(float bar, const float* rank, const float* sizes, int64_t count);
    // The sum of all 32-bit numbers of a multiple of 256 bytes, which nobody needs: reads as fast as weights are read.
    int32_t (*read)(const uint8_t* from, int64_t bytes);
    // Attention of `count` queries (count, D) that share keys and values and see `visible[i]` of them.
    void (*attend)(const AttentionTask& task);
};

const Ops* ops_avx2();
const Ops* ops_avx512_vnni();
const Ops* ops_avx512_bf16();
const Ops* ops_neon();

}  // namespace openglm
