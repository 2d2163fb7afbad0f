// Which kernel counts a layer: the fastest on this machine, measured once for each shape.
//
// All kernels give the same integers, so a measurement that comes out differently changes no result.
#include <algorithm>
#include <array>
#include <ctime>
#include <map>
#include <mutex>

#include "../kernel.h"

extern const Kernel TABLE_SUMS;
#if defined(__SSSE3__)
extern const Kernel PRODUCTS;
const Kernel* const PRODUCTS_HERE = &PRODUCTS;
#else
const Kernel* const PRODUCTS_HERE = nullptr;
#endif
#if defined(__AMX_INT8__) && defined(__AMX_TILE__) && defined(__linux__)
extern const Kernel MATRIX_PRODUCTS;
const Kernel* const MATRICES_HERE = &MATRIX_PRODUCTS;
#else
const Kernel* const MATRICES_HERE = nullptr;
#endif
#if defined(__AVX512VBMI__) && defined(__AVX512BW__)
extern const Kernel WIDE_TABLES;
const Kernel* const WIDE_TABLES_HERE = &WIDE_TABLES;
#else
const Kernel* const WIDE_TABLES_HERE = nullptr;
#endif

namespace {

// In the order of KERNELS in plan.py; null for what this processor's instructions do not offer.
const Kernel* const KERNELS[] = {&POPCOUNT, &TABLE_SUMS, PRODUCTS_HERE, MATRICES_HERE, WIDE_TABLES_HERE};
constexpr int COUNT = sizeof KERNELS / sizeof *KERNELS;

constexpr int64_t ENOUGH = 24'000'000;  // products of weights and inputs in a measurement
constexpr int MOST_OUTPUTS = 128;          // so that few weights must be laid out for it
constexpr int REPEATS = 3;
constexpr int IN_A_ROW = 3;  // the units for matrices are slow when they have just been switched on

// Everything that the time of a layer depends on.
std::array<int, 18> shape(const Step& s) {
    return {s.channels, s.high, s.wide, s.outputs, s.kernel_high, s.kernel_wide, s.stride_high, s.stride_wide,
            s.pad_high, s.pad_wide, s.thresholds, s.a_planes, s.a_groups, s.a_offset != 0, s.w_planes, s.w_groups,
            s.a_multiplier[s.a_planes - 1], s.w_multiplier[s.w_planes - 1]};
}

// The same layer with fewer outputs, and for an image of fewer rows: it takes a fraction of a millisecond.
Step shortened(Step s) {
    s.outputs = std::min(s.outputs, MOST_OUTPUTS);
    const int64_t row = int64_t(s.out_wide) * s.outputs * s.channels * s.kernel_high * s.kernel_wide;
    const int rows = int(std::min<int64_t>(s.out_high, ENOUGH / row + 1));
    const int high = (rows - 1) * s.stride_high + s.kernel_high;
    if (high > s.high) return s;
    s.out_high = rows;
    s.high = high;
    s.pad_high = 0;
    return s;
}

// Time of this thread alone, so that other programs disturb the measurement less.
double thread_seconds() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

// A kernel at work on the shortened layer: the least time for its input alone, and for all.
struct Trial {
    Layer layer;
    Scratch scratch;
    double packing = 1e30, all = 1e30;
    Trial(const Step& step, const Kernel* kernel) {
        layer.step = step;
        layer.kernel = kernel;
        prepare_counts(layer);
        scratch.packed.resize(kernel->input_bytes(layer) / 8 + 8);
        scratch.sums.resize(layer.sums());
    }
    void run(const float* x, float* y) {
        for (int i = 0; i < IN_A_ROW; i++) {
            const double began = thread_seconds();
            layer.kernel->pack_rows(layer, x, (uint8_t*)scratch.packed.data(), 0, layer.padded_high());
            const double packed = thread_seconds();
            run_counts(layer, x, nullptr, y, scratch, 1, nullptr);
            packing = std::min(packing, packed - began);
            all = std::min(all, thread_seconds() - packed);
        }
    }
    // With so many times the outputs, for which the input is packed once.
    double seconds(double times) const { return packing + std::max(0.0, all - packing) * times; }
};

const Kernel* fastest(const Step& whole, const std::vector<const Kernel*>& kernels) {
    const Step step = shortened(whole);
    std::vector<Trial> trials;
    for (const Kernel* kernel : kernels) trials.emplace_back(step, kernel);
    const std::vector<float> x(size_t(step.high) * step.wide * step.channels);
    std::vector<float> y(size_t(step.out_high) * step.out_wide * step.outputs);
    for (int i = 0; i < REPEATS; i++)
        for (Trial& trial : trials) trial.run(x.data(), y.data());
    const double times = double(whole.outputs) / step.outputs;
    const auto is_faster = [=](const Trial& a, const Trial& b) { return a.seconds(times) < b.seconds(times); };
    return std::min_element(trials.begin(), trials.end(), is_faster)->layer.kernel;
}

}  // namespace

const Kernel* choose_kernel(const Step& step) {
    std::vector<const Kernel*> serving;
    for (int i = 0; i < COUNT; i++) {
        if (!KERNELS[i] || !KERNELS[i]->serves(step)) continue;
        if (step.kernel == i + 1) return KERNELS[i];
        serving.push_back(KERNELS[i]);
    }
    if (serving.size() <= 1 || step.kernel > 0) return serving.empty() ? nullptr : serving.front();
    static std::mutex mutex;
    static std::map<std::array<int, 18>, const Kernel*> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(shape(step));
    if (found != known.end()) return found->second;
    return known[shape(step)] = fastest(step, serving);  // kept only if the measurement came to its end
}
