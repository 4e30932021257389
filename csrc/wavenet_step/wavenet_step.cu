// A block takes a sequence through all steps: a thread computes every kThreads-th output of a product, so that
// neighbouring threads read neighbouring weights, which come from the second-level cache. What a step needs
// lies in global memory, since no limit of shared memory then applies to the widths; the first-level cache
// holds it. One thread alone adds up the probabilities.
#include "core/cuda_launch.h"
#include "wavenet_step/wavenet_step_formula.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;

// out = start + in w, where a row of w has `row` numbers; out(j) is given to done(j, sum).
template <class T, class Done>
__device__ void product(const T* in, int64_t depth, const T* w, int64_t row, int64_t columns, const T* start,
                        Done&& done) {
  for (int64_t j = threadIdx.x; j < columns; j += kThreads) {
    T sum = start[j];
    for (int64_t i = 0; i < depth; ++i) sum += in[i] * w[i * row + j];
    done(j, sum);
  }
}

template <class T>
__device__ T relu(T x) {
  return x < 0 ? T(0) : x;  // a NaN stays
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1) wavenet_kernel(const WaveNetParams p) {
  const int thread = int(threadIdx.x);
  const int64_t outputs = p.channels + p.skips;
  const auto at = [](const void* pointer, int64_t i) { return static_cast<const T*>(pointer) + i; };
  for (int64_t n = blockIdx.x; n < p.batch; n += gridDim.x) {
    T* x = static_cast<T*>(p.workspace) + n * wavenet_numbers(p);
    T *skip = x + p.channels, *z = skip + p.skips, *h = z + 2 * p.gates, *hidden = h + p.gates;
    T* logits = hidden + p.hidden;
    int64_t code = p.codes[n], time = p.times[n];
    __syncthreads();
    for (int64_t step = 0; step < p.steps; ++step, time = next_time(time)) {
      const bool known = code >= 0 && code < p.classes;
      for (int64_t i = thread; i < p.channels; i += kThreads)
        x[i] = known ? *at(p.embedding, code * p.channels + i) : T(NAN);
      for (int64_t i = thread; i < p.skips; i += kThreads) skip[i] = 0;
      __syncthreads();
      int64_t queue = n * p.queue_rows;
      for (int64_t l = 0; l < p.layers; ++l) {
        const int64_t length = (p.taps - 1) * p.dilations[l];
        T* ring = static_cast<T*>(p.queues) + queue * p.channels;
        const T* condition =
            at(p.condition, ((n * p.frames + frame_of(p, time)) * p.layers + l) * 2 * p.gates);
        const T* w_gate = at(p.w_gate, l * p.taps * p.channels * 2 * p.gates);
        for (int64_t j = thread; j < 2 * p.gates; j += kThreads) {
          T sum = condition[j];
          for (int64_t tap = 0; tap < p.taps; ++tap) {
            const T* in = tap == 0 ? x : ring + ring_place(time, tap * p.dilations[l], length) * p.channels;
            const T* w = w_gate + tap * p.channels * 2 * p.gates + j;
            for (int64_t i = 0; i < p.channels; ++i) sum += in[i] * w[i * 2 * p.gates];
          }
          z[j] = sum;
        }
        __syncthreads();
        if (length > 0)
          for (int64_t i = thread; i < p.channels; i += kThreads)
            ring[ring_place(time, 0, length) * p.channels + i] = x[i];
        for (int64_t j = thread; j < p.gates; j += kThreads) h[j] = tanh(z[j]) * sigmoid(z[p.gates + j]);
        __syncthreads();
        product(h, p.gates, at(p.w_out, l * p.gates * outputs), outputs, outputs, at(p.b_out, l * outputs),
                [&](int64_t j, T y) { j < p.channels ? x[j] += y : skip[j - p.channels] += y; });
        __syncthreads();
        queue += length;
      }
      const int64_t place = n * p.steps + step;
      if (p.given == nullptr || p.keep_logits) {
        for (int64_t i = thread; i < p.skips; i += kThreads) skip[i] = relu(skip[i]);
        __syncthreads();
        product(skip, p.skips, at(p.w_hidden, 0), p.hidden, p.hidden, at(p.b_hidden, 0),
                [&](int64_t j, T y) { hidden[j] = relu(y); });
        __syncthreads();
        product(hidden, p.hidden, at(p.w_logits, 0), p.classes, p.classes, at(p.b_logits, 0),
                [&](int64_t j, T y) {
                  logits[j] = y;
                  if (p.keep_logits) static_cast<T*>(p.logits)[place * p.classes + j] = y;
                });
        __syncthreads();
      }
      if (p.given) {
        code = p.given[place];
        if (thread == 0) p.samples[place] = code;
        continue;
      }
      const T temperature = T(p.temperature);
      if (temperature == 0) {
        if (thread == 0) p.samples[place] = most_likely_code(logits, p.classes);
      } else {
        T top = -T(INFINITY);
        for (int64_t k = 0; k < p.classes; ++k) top = max(logits[k], top);
        __syncthreads();
        for (int64_t k = thread; k < p.classes; k += kThreads)
          logits[k] = exp((logits[k] - top) / temperature);
        __syncthreads();
        if (thread == 0) p.samples[place] = drawn_code(logits, p.classes, double(*at(p.uniform, place)));
      }
      __syncthreads();
      code = p.samples[place];
    }
    if (thread == 0) {
      p.codes[n] = code;
      p.times[n] = time;
    }
  }
}

}  // namespace

namespace cuda {

void wavenet_step(const WaveNetParams& p, int64_t sequences, void* stream) {
  dispatch_acc(p.dtype,
               [&]<class T>(T*) { launch(wavenet_kernel<T>, grid_size(sequences), kThreads, 0, stream, p); });
}

}  // namespace cuda
}  // namespace aigc
