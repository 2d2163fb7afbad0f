// One step of a network: declared again in deploy/engine/build.py (Step), filled in deploy/engine/arrays.py.
//
// Float addition is not associative, and results must not depend on the instruction set: every sum of the engine
// has one fixed order, and a vector holds different outputs, never parts of one sum.
#pragma once
#include <cstdint>

// Output channels that a kernel computes at a time; weights and counts are laid out in such blocks.
constexpr int BLOCK = 16;

enum Kind { COUNTS, DENSE, DEPTHWISE, DEQUANTIZE, ADD, RELU, MAX_POOL, MEAN_POOL };

// All arrays belong to the caller and live as long as the network. Activations are (H, W, C).
struct Step {
    int32_t kind;
    int32_t input, other, output;  // numbers of tensors; other is added to the result, -1: none
    int32_t channels, high, wide;  // of the input
    int32_t outputs, out_high, out_wide;
    int32_t kernel_high, kernel_wide, stride_high, stride_wide, pad_high, pad_wide;
    int32_t relu;  // 1: the result is limited to [0, ceiling]
    float ceiling;
    const float* shift;   // (O,)
    const float* weight;  // float32 (O, kh, kw, I), of DENSE and DEPTHWISE
    const int32_t* window;  // of pools: [start, end) of each output row, then of each column

    // The quantizer of the input, of COUNTS and DEQUANTIZE, and of DEPTHWISE if threshold is not null: code = number
    // of t with x >= t.
    int32_t thresholds;
    const float* threshold;  // (T,) rising
    const float* level;      // (T + 1,)

    // COUNTS. a = a_offset + sum_h a_value[h] A_h, A_h = sum of a_multiplier x bit over planes of h.
    int32_t a_planes, a_groups;
    const uint8_t* a_bits;  // (planes, T + 1): the bit of each code; 0 for code 0
    const int32_t *a_multiplier, *a_group;
    const float* a_value;
    float a_offset;
    int32_t a_halves;  // a_offset = a_halves / 2 x a_value[0], where there is one group; else 0
    // w = w_offset + sum_g w_value[o][g] W_g, W_g = sum of w_multiplier x (+-1) over planes of g.
    int32_t w_levels, w_planes, w_groups;
    const uint8_t* w_codes;  // (O, kh, kw, C)
    const uint8_t* w_bits;   // (planes, levels): 1 stands for +1, 0 for -1
    const int32_t *w_multiplier, *w_group;
    const float* w_value;   // (O, groups), times the scale of output channel o
    const float* w_offset;  // (O,), likewise; null where it is zero
    int32_t kernel;  // 0: the fastest, else the number of one of KERNELS in kernels/choose.cpp, from 1
};

// y after the step's ReLU, in [0, ceiling]; y itself where the step has none.
inline float limited(const Step& step, float y) {
    if (!step.relu) return y;
    y = y > 0 ? y : 0;
    return y < step.ceiling ? y : step.ceiling;
}
