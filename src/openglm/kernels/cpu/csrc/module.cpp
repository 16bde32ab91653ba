// The kernels as Python sees them. Addresses and sizes come as integers: the Python side has checked shapes and dtypes once,
// and a call costs a microsecond.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "block.h"
#include "pages.h"
#include "sampling.h"

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

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// Calls that run without Python's lock; it is held where this changes.
int num_unlocked = 0;

struct Counted {
    Counted() { num_unlocked++; }
    ~Counted() { num_unlocked--; }
};

// Work on many rows takes milliseconds: other Python threads may run meanwhile. Work on a few takes as long if it must wait for such work
// of another thread; if there is none, nobody else can be at the pool, since who comes there holds Python's lock.
template <class Work>
void unlocked(int64_t rows, Work work) {
    constexpr int64_t kManyRows = 16;
    if (rows < kManyRows && num_unlocked == 0) return work();
    const Counted counted;
    nb::gil_scoped_release release;
    work();
}

// Reads `bytes` with all threads; their sum.
int64_t stream(uintptr_t address, int64_t bytes) {
    constexpr int64_t kPiece = 1 << 20;
    std::atomic<int64_t> sum{0};
    pool()->run(bytes / kPiece, [&](int64_t piece) { sum += ops->read(at<uint8_t>(address) + piece * kPiece, kPiece); });
    return sum;
}

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
    // One by one, for norms outside blocks and for the tests.
    m.def("norm", [](uintptr_t x, uintptr_t weight, uintptr_t bias, float eps, uintptr_t out, int64_t rows, int64_t width) {
        Norm{at<float>(weight), at<float>(bias), eps, width}(at<float>(x), at<float>(out), rows);
    });
    m.def("activate", [](int family, bool gated, uintptr_t x, uintptr_t out, int64_t rows, int64_t width) {
        Activation{family, gated, width}(at<float>(x), at<float>(out), rows);
    });
    m.def("rotate", [](uintptr_t x, int64_t stride, int64_t rows, int64_t heads, int64_t head_dim, uintptr_t cosines, uintptr_t sines,
                       int64_t planes, int64_t pairs, bool interleaved) {
        rotate(at<float>(x), stride, rows, heads, head_dim, {at<float>(cosines), at<float>(sines), planes, pairs}, interleaved);
    });
    m.def("log_sum_exp", [](uintptr_t x, int64_t count) { return log_sum_exp(at<float>(x), count); });
    m.def("best", [](uintptr_t x, int64_t count) { return best(at<float>(x), count); });
    m.def("probabilities", [](uintptr_t x, int64_t count, float temperature, int64_t top_k, double top_p, float min_p, double typical_p,
                              uintptr_t out) {
        probabilities(at<float>(x), count, {temperature, top_k, top_p, min_p, typical_p}, at<float>(out));
    });
    m.def("draw", [](uintptr_t p, int64_t count, double place) { return draw(at<float>(p), count, place); });
    nb::class_<Linear>(m, "Linear")
        .def("__init__", [](Linear* self, int kind, bool exact, int64_t inputs, int64_t columns, int64_t group) {
            new (self) Linear((Kind)kind, exact, inputs, columns, group);
        })
        .def("add", [](Linear& self, int64_t rows, uintptr_t values, uintptr_t scale, uintptr_t minimum, uintptr_t row_scale, uintptr_t bias) {
            self.add(rows, at<uint8_t>(values), at<uint16_t>(scale), at<uint16_t>(minimum), at<float>(row_scale), at<float>(bias));
        })
        .def("run", [](const Linear& self, uintptr_t x, int64_t rows, uintptr_t y) {
            unlocked(rows, [&] { self.run(at<float>(x), rows, at<float>(y)); });
        })
        .def_prop_ro("outputs", &Linear::outputs);
    nb::class_<Block>(m, "Block")
        .def(nb::init<const Linear&, const Linear&, const Linear&, const Linear&, int64_t, int64_t, bool, int, bool, float>(),
             nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(), nb::keep_alive<1, 5>())
        .def("set_norm", [](Block& self, int place, uintptr_t weight, uintptr_t bias, float eps, int64_t width) {
            self.set_norm(place, {at<float>(weight), at<float>(bias), eps, width});
        })
        .def("before", [](const Block& self, uintptr_t x, int64_t rows, uintptr_t cosines, uintptr_t sines, int64_t planes, int64_t pairs,
                          uintptr_t mixed) {
            const Angles angles{at<float>(cosines), at<float>(sines), planes, pairs};
            unlocked(rows, [&] { self.before(at<float>(x), rows, planes ? &angles : nullptr, at<float>(mixed)); });
        })
        .def("behind", [](const Block& self, uintptr_t x, uintptr_t attended, int64_t rows, uintptr_t out) {
            unlocked(rows, [&] { self.behind(at<float>(x), at<float>(attended), rows, at<float>(out)); });
        });
    nb::class_<Pages>(m, "Pages")
        .def("__init__", [](Pages* self, int kind, int64_t heads, int64_t head_dim, uintptr_t keys, uintptr_t values, uintptr_t key_scales,
                            uintptr_t value_scales) {
            new (self) Pages((Kind)kind, heads, head_dim, at<uint8_t>(keys), at<uint8_t>(values), at<float>(key_scales), at<float>(value_scales));
        })
        .def("store", [](const Pages& self, uintptr_t keys, uintptr_t values, int64_t stride, uintptr_t slots, int64_t count) {
            unlocked(count, [&] { self.store(at<float>(keys), at<float>(values), stride, at<int64_t>(slots), count); });
        })
        .def("attend", [](const Pages& self, uintptr_t queries, int64_t stride, int64_t query_heads, uintptr_t starts, uintptr_t lengths,
                          uintptr_t visible, uintptr_t pages, int64_t sequences, int64_t page_columns, uintptr_t out) {
            const Segments who{at<int32_t>(starts), at<int32_t>(lengths), at<int32_t>(visible), at<int32_t>(pages), sequences, page_columns};
            unlocked(who.starts[sequences], [&] { self.attend(at<float>(queries), stride, query_heads, who, at<float>(out)); });
        });
}
