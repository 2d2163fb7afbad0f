// The library's functions: a network is made from steps, runs images, and is freed.
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "kernel.h"
#include "floats/pool.h"

namespace {

struct Network {
    std::vector<Layer> layers;
    std::vector<Joined> joined;    // of each layer
    std::vector<int64_t> offsets;  // of each tensor in the arena, in floats
    InLines<float> arena;
    Scratch scratch;
    int64_t image, scores;  // floats of one input and one output
    int channels, output;   // of the input; the tensor of the scores
};

void prepare(Layer& layer, Scratch& scratch) {
    const Step& s = layer.step;
    const size_t pixels = size_t(layer.padded_high()) * layer.padded_wide();
    auto grow = [](auto& buffer, size_t size) { buffer.resize(std::max(buffer.size(), size)); };
    if (s.kind == COUNTS) {
        layer.kernel = choose_kernel(s);
        if (!layer.kernel) throw std::bad_alloc();  // the plan asks only for what can be counted
        prepare_counts(layer);
        grow(scratch.packed, layer.kernel->input_bytes(layer) / 8 + 8);
        grow(scratch.sums, layer.sums());
    } else if (s.kind == DENSE) {
        prepare_dense(layer);
        grow(scratch.padded, pixels * s.channels);
    } else if (s.kind == DEPTHWISE) {
        prepare_depthwise(layer);
    }
}

bool takes_codes(const Layer& layer) {
    const Step& s = layer.step;
    const bool quantizes = s.kind == COUNTS || (s.kind == DEPTHWISE && s.threshold);
    return quantizes && s.thresholds <= MOST_HANDED && s.channels % BLOCK == 0;
}

// The step whose input is the output of step k, if that has no other use (a sum, the scores); 0: there is none.
size_t only_reader(const std::vector<Layer>& layers, size_t k, int output) {
    const int32_t made = layers[k].step.output;
    size_t reader = 0;
    int readers = made == output;
    for (size_t i = k + 1; i < layers.size(); i++) {
        readers += (layers[i].step.input == made) + (layers[i].step.other == made);
        if (layers[i].step.input == made) reader = i;
    }
    return readers == 1 ? reader : 0;
}

// Where the output of a step has one reader: a convolution by counts, or a depthwise one, writes the codes that the
// reader's quantizer would make of it. With other readers it would have to write floats as well, which gains nothing.
//
// A float32 convolution computes the max pool that reads it, if a window has few rows and the weights stay in a
// cache. The pool's output may lie where the input of the convolution does. So the convolution must read a padded
// copy and add no other tensor, and the pool must come next.
void join_steps(Network& network, int output) {
    auto& layers = network.layers;
    network.joined.resize(layers.size());
    for (size_t k = 0; k < layers.size(); k++) {
        const Step& maker = layers[k].step;
        const size_t reader = only_reader(layers, k, output);
        if (reader == 0) continue;
        if ((maker.kind == COUNTS || maker.kind == DEPTHWISE) && takes_codes(layers[reader])) {
            network.joined[k].quantizer = &layers[reader].step;
            network.joined[reader].codes_in = true;
        }
        const bool copied = maker.pad_high > 0 || maker.pad_wide > 0;
        if (maker.kind == DENSE && copied && maker.other < 0 && reader == k + 1 &&
            layers[reader].step.kind == MAX_POOL && window_rows(layers[reader].step) <= MOST_KEPT &&
            layers[k].weight.size() < size_t(maker.out_high) * maker.out_wide * maker.outputs) {
            network.joined[k].pool = &layers[reader].step;
            network.joined[reader].done = true;
        }
    }
}

void run_step(const Layer& layer, const float* x, const float* other, float* y, Scratch& scratch, int threads,
              int32_t* counts, const Joined& joined = {}) {
    if (joined.pool) return run_pooled(layer, x, *joined.pool, y, scratch, threads);
    switch (layer.step.kind) {
        case COUNTS: return run_counts(layer, x, other, y, scratch, threads, counts, joined);
        case DENSE: return run_dense(layer, x, other, y, scratch, threads);
        case DEPTHWISE: return run_depthwise(layer, x, other, y, scratch, threads, joined);
        case DEQUANTIZE: return run_dequantize(layer, x, y, threads);
        case MAX_POOL:
        case MEAN_POOL: return run_pool(layer, x, y, threads);
        default: return run_elementwise(layer, x, other, y, threads);
    }
}

// x (C, pixels) -> y (pixels, C).
void channels_last(const float* x, int64_t pixels, int channels, float* y) {
    if (channels == 3) {
        const float *red = x, *green = x + pixels, *blue = green + pixels;
        for (int64_t i = 0; i < pixels; i++, y += 3) y[0] = red[i], y[1] = green[i], y[2] = blue[i];
        return;
    }
    constexpr int64_t LINE = 16;  // pixels at a time, so that lines of memory are read and written once
    for (int64_t first = 0; first < pixels; first += LINE)
        for (int c = 0; c < channels; c++)
            for (int64_t i = first; i < std::min(pixels, first + LINE); i++) y[i * channels + c] = x[c * pixels + i];
}

}  // namespace

extern "C" {

// So that the caller can compare it with its own declaration of the struct.
int32_t step_size() { return sizeof(Step); }

// Null if the memory does not suffice. Tensor 0 is the image, tensor `output` the scores.
void* network_new(const Step* steps, int32_t count, const int64_t* offsets, int32_t tensors, int64_t arena,
                  int64_t image, int32_t channels, int32_t output, int64_t scores) try {
    auto network = std::make_unique<Network>();
    network->layers.resize(count);
    for (int i = 0; i < count; i++) {
        network->layers[i].step = steps[i];
        prepare(network->layers[i], network->scratch);
    }
    join_steps(*network, output);
    network->offsets.assign(offsets, offsets + tensors);
    network->output = output;
    network->arena.resize(arena);
    network->image = image;
    network->channels = channels;
    network->scores = scores;
    return network.release();
} catch (const std::bad_alloc&) {
    return nullptr;
}

void network_free(void* network) { delete (Network*)network; }

// The name of the kernel of a step that counts; the method of one in float32, empty for the direct sum.
const char* network_kernel(void* network, int32_t step) {
    const Layer& layer = ((Network*)network)->layers[step];
    return layer.kernel ? layer.kernel->name : layer.columns.empty() ? "" : "Winograd";
}

// images (n, C, H, W), or (n, H, W, C) with `last` -> scores (n, classes). 0 if the memory does not suffice.
int32_t network_run(void* pointer, const float* images, int32_t last, int64_t n, float* scores, int32_t threads) try {
    auto& network = *(Network*)pointer;
    float* arena = network.arena.data();
    const auto& offsets = network.offsets;
    for (int64_t i = 0; i < n; i++, images += network.image) {
        if (!last) channels_last(images, network.image / network.channels, network.channels, arena + offsets[0]);
        const auto tensor = [&](int k) { return k == 0 && last ? images : arena + offsets[k]; };
        for (size_t k = 0; k < network.layers.size(); k++) {
            const Step& s = network.layers[k].step;
            const Joined& joined = network.joined[k];
            if (joined.done) continue;
            run_step(network.layers[k], tensor(s.input), s.other < 0 ? nullptr : tensor(s.other),
                     arena + offsets[joined.pool ? joined.pool->output : s.output], network.scratch, threads,
                     nullptr, joined);
        }
        std::memcpy(scores + i * network.scores, tensor(network.output), sizeof(float) * network.scores);
    }
    return 1;
} catch (const std::bad_alloc&) {
    return 0;
}

// One step alone, on tensors of the caller. counts: null, or where the integers go (see counts.cpp).
void network_step(void* pointer, int32_t step, const float* x, const float* other, float* y, int32_t threads,
                  int32_t* counts) {
    auto& network = *(Network*)pointer;
    run_step(network.layers[step], x, other, y, network.scratch, threads, counts);
}

}
