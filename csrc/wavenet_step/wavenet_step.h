// WaveNet, sample by sample (van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio",
// arXiv:1609.03499), with the queues of Le Paine et al. 2016 ("Fast WaveNet Generation Algorithm",
// arXiv:1611.09482). One step, for each sequence, from the last code and what the queues hold:
//
//     x = embedding[code]                                    channels
//     for each layer l with dilation d:
//         z = condition[frame, l] + sum over taps j of w_gate[l, j] x(t - j d)       2 gates
//         h = tanh(z1) sigmoid(z2)
//         y = b_out[l] + w_out[l] h                          channels + skips
//         x += y[:channels],  skip += y[channels:]           x of the last layer goes nowhere
//     logits = b_logits + w_logits relu(b_hidden + w_hidden relu(skip))              classes
//     the next code is drawn with probabilities softmax(logits / temperature)
//
// x(t - j d) of a layer comes from its ring of (taps - 1) d inputs, where it is in place t - j d modulo the
// length. What is older than the first step is 0, since the queues are 0 then.
//
// Matrices are [inputs, outputs], so that the numbers that one input is multiplied with are adjacent. A sum
// begins with its bias and goes on in the order of the inputs, the same for a sequence alone as in a batch.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

constexpr int kMaxWaveNetLayers = 128;

struct WaveNetParams {
  DType dtype = DType::float32;  // float32 or float64
  int64_t batch = 0, steps = 0, layers = 0, taps = 0;
  int64_t channels = 0, gates = 0, skips = 0, hidden = 0, classes = 0;
  int64_t frames = 0, hop = 1;  // the condition of step t is that of frame t / hop, or of the last one
  int64_t queue_rows = 0;       // of a sequence, all layers' one behind the other
  double temperature = 1;       // 0: the most likely code, of several the first
  bool keep_logits = false;
  int64_t dilations[kMaxWaveNetLayers] = {};

  void* queues = nullptr;    // batch, queue_rows, channels
  int64_t* codes = nullptr;  // batch: the last ones
  int64_t* times = nullptr;  // batch: how many steps there have been

  const void* uniform = nullptr;    // batch, steps: random numbers in [0, 1)
  const int64_t* given = nullptr;   // batch, steps: codes to take instead of drawing them; or null
  const void* condition = nullptr;  // batch, frames, layers, 2 gates
  const void* embedding = nullptr;  // classes, channels
  const void* w_gate = nullptr;     // layers, taps, channels, 2 gates
  const void* w_out = nullptr;      // layers, gates, channels + skips
  const void* b_out = nullptr;      // layers, channels + skips
  const void* w_hidden = nullptr;   // skips, hidden
  const void* b_hidden = nullptr;   // hidden
  const void* w_logits = nullptr;   // hidden, classes
  const void* b_logits = nullptr;   // classes

  int64_t* samples = nullptr;  // batch, steps
  void* logits = nullptr;      // batch, steps, classes with keep_logits
  void* workspace = nullptr;   // CUDA: batch, wavenet_numbers
};

// What a sequence needs during a step: x, skip, z, h, y, hidden, logits.
AIGC_INLINE int64_t wavenet_numbers(const WaveNetParams& p) {
  return 2 * (p.channels + p.skips) + 3 * p.gates + p.hidden + p.classes;
}

// Where a ring holds what was `back` steps before a time, which the caller's memory holds and may be anything.
AIGC_INLINE int64_t ring_place(int64_t time, int64_t back, int64_t length) {
  const int64_t place = (time % length - back % length) % length;  // the difference itself may overflow
  return place < 0 ? place + length : place;
}
AIGC_INLINE int64_t next_time(int64_t time) { return int64_t(uint64_t(time) + 1); }
AIGC_INLINE int64_t frame_of(const WaveNetParams& p, int64_t time) {
  const int64_t frame = time / p.hop;
  return frame < 0 ? 0 : frame < p.frames ? frame : p.frames - 1;
}

}  // namespace aigc

AIGC_KERNEL(wavenet_step, WaveNetParams)  // items: sequences
