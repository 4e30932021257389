#include "wavenet_step/wavenet_step.h"

#include <cmath>
#include <tuple>

#include "glue/backend.h"

namespace aigc {
namespace {

constexpr const char* kOp = "wavenet_step_";
constexpr int64_t kWork = 1 << 20;  // multiplications that are enough work for a thread

void check_floats(const Tensor& t, const char* name, const Tensor& like, Sizes sizes) {
  check_same_kind(t, name, like, "queues", kOp);
  AIGC_CHECK(t.sizes() == sizes, kOp, ": ", name, " has shape ", shape(t), ", but must be ", shape(sizes));
}

void check_integers(const Tensor& t, const char* name, Sizes sizes) {
  AIGC_CHECK(t.scalar_type() == ScalarType::Long, kOp, ": ", name, " is ", dtype_name(t.scalar_type()),
             ", but must be int64");
  AIGC_CHECK(t.sizes() == sizes, kOp, ": ", name, " has shape ", shape(t), ", but must be ", shape(sizes));
}

void check_written(const Tensor& t, const char* name) {
  AIGC_CHECK(t.is_contiguous(), kOp, ": ", name, " has shape ", shape(t), " and strides ", shape(t.strides()),
             ", but must be contiguous");
}

std::tuple<Tensor, Tensor> wavenet_step_(const Tensor& queues, const Tensor& codes, const Tensor& times,
                                         const OptionalTensor& uniform_any, const OptionalTensor& given_any,
                                         const Tensor& condition, const Tensor& embedding,
                                         const Tensor& w_gate, const Tensor& w_out, const Tensor& b_out,
                                         const Tensor& w_hidden, const Tensor& b_hidden,
                                         const Tensor& w_logits, const Tensor& b_logits,
                                         const std::vector<int64_t>& dilations, int64_t hop,
                                         double temperature, bool with_logits) {
  WaveNetParams p;
  AIGC_CHECK(queues.scalar_type() == ScalarType::Float || queues.scalar_type() == ScalarType::Double, kOp,
             ": queues is ", dtype_name(queues.scalar_type()), ", but must be float32 or float64");
  p.dtype = dtype_of(queues, kOp, "queues");
  AIGC_CHECK(uniform_any.has_value() != given_any.has_value(), kOp,
             ": one of uniform and given must be a tensor, the other None");
  AIGC_CHECK(hop >= 1, kOp, ": hop is ", hop, ", but must be at least 1");
  AIGC_CHECK(temperature >= 0 && std::isfinite(temperature), kOp, ": temperature is ", temperature,
             ", but must be at least 0 and finite");
  AIGC_CHECK(w_gate.dim() == 4 && w_gate.size(1) >= 1 && w_gate.size(3) % 2 == 0, kOp, ": w_gate has shape ",
             shape(w_gate), ", but must be [layers, taps, channels, 2 * gates] with one tap at least");
  p.layers = w_gate.size(0);
  p.taps = w_gate.size(1);
  p.channels = w_gate.size(2);
  p.gates = w_gate.size(3) / 2;
  AIGC_CHECK(p.layers <= kMaxWaveNetLayers, kOp, ": w_gate has ", p.layers, " layers, but at most ",
             kMaxWaveNetLayers, " are possible");
  AIGC_CHECK(int64_t(dilations.size()) == p.layers, kOp, ": dilations has ", dilations.size(),
             " numbers, but w_gate ", p.layers, " layers");
  for (size_t l = 0; l < dilations.size(); ++l) {
    AIGC_CHECK(dilations[l] >= 1, kOp, ": dilations[", l, "] is ", dilations[l], ", but must be at least 1");
    p.dilations[l] = dilations[l];
    p.queue_rows = size_sum({p.queue_rows, size_product({p.taps - 1, dilations[l]})});
  }
  AIGC_CHECK(codes.dim() == 1, kOp, ": codes has shape ", shape(codes), ", but must be [batch]");
  p.batch = codes.size(0);
  AIGC_CHECK(embedding.dim() == 2 && embedding.size(0) >= 1, kOp, ": embedding has shape ", shape(embedding),
             ", but must be [classes, channels] with one class at least");
  p.classes = embedding.size(0);
  AIGC_CHECK(w_hidden.dim() == 2, kOp, ": w_hidden has shape ", shape(w_hidden),
             ", but must be [skips, hidden]");
  p.skips = w_hidden.size(0);
  p.hidden = w_hidden.size(1);
  AIGC_CHECK(condition.dim() == 4 && condition.size(1) >= 1, kOp, ": condition has shape ", shape(condition),
             ", but must be [batch, frames, layers, 2 * gates] with one frame at least");
  p.frames = condition.size(1);
  const OptionalTensor& steps = uniform_any ? uniform_any : given_any;
  AIGC_CHECK(steps->dim() == 2, kOp, ": ", uniform_any ? "uniform" : "given", " has shape ", shape(*steps),
             ", but must be [batch, steps]");
  p.steps = steps->size(1);
  p.hop = hop;
  p.temperature = temperature;
  p.keep_logits = with_logits;

  const int64_t outputs = size_sum({p.channels, p.skips}), two_gates = w_gate.size(3);
  const auto floats = [&](const Tensor& t, const char* name, std::vector<int64_t> sizes) {
    check_floats(t, name, queues, {sizes.data(), sizes.size()});
  };
  floats(queues, "queues", {p.batch, p.queue_rows, p.channels});
  check_integers(codes, "codes", {&p.batch, 1});
  check_integers(times, "times", {&p.batch, 1});
  const int64_t batch_steps[] = {p.batch, p.steps};
  if (uniform_any) floats(*uniform_any, "uniform", {p.batch, p.steps});
  if (given_any) check_integers(*given_any, "given", {batch_steps, 2});
  floats(condition, "condition", {p.batch, p.frames, p.layers, two_gates});
  floats(embedding, "embedding", {p.classes, p.channels});
  floats(w_gate, "w_gate", {p.layers, p.taps, p.channels, two_gates});
  floats(w_out, "w_out", {p.layers, p.gates, outputs});
  floats(b_out, "b_out", {p.layers, outputs});
  floats(w_hidden, "w_hidden", {p.skips, p.hidden});
  floats(b_hidden, "b_hidden", {p.hidden});
  floats(w_logits, "w_logits", {p.hidden, p.classes});
  floats(b_logits, "b_logits", {p.classes});
  check_written(queues, "queues");
  check_written(codes, "codes");
  check_written(times, "times");

  const int64_t logits_sizes[] = {p.batch, with_logits ? p.steps : 0, p.classes};
  const Tensor samples =
      empty_strided(codes, {batch_steps, 2}, dense_strides({batch_steps, 2}, false), ScalarType::Long);
  const Tensor logits = empty_dense(queues, {logits_sizes, 3}, false);
  if (p.batch == 0 || p.steps == 0) return {samples, logits};

  TensorList held;  // copies of what is not contiguous
  const auto read = [&](const Tensor& t) {
    held.push_back(as_format(t, false));
    return static_cast<const void*>(held.back().data_ptr());
  };
  p.queues = queues.data_ptr();
  p.codes = static_cast<int64_t*>(codes.data_ptr());
  p.times = static_cast<int64_t*>(times.data_ptr());
  if (uniform_any) p.uniform = read(*uniform_any);
  if (given_any) p.given = static_cast<const int64_t*>(read(*given_any));
  p.condition = read(condition);
  p.embedding = read(embedding);
  p.w_gate = read(w_gate);
  p.w_out = read(w_out);
  p.b_out = read(b_out);
  p.w_hidden = read(w_hidden);
  p.b_hidden = read(b_hidden);
  p.w_logits = read(w_logits);
  p.b_logits = read(b_logits);
  p.samples = static_cast<int64_t*>(samples.data_ptr());
  p.logits = logits.data_ptr();
  const int64_t numbers = size_product({p.batch, wavenet_numbers(p)});
  const Tensor workspace = empty_1d(queues, kOnGpu ? numbers : 0, queues.scalar_type());
  p.workspace = workspace.data_ptr();
  const int64_t work = w_gate.numel() + w_out.numel() + w_hidden.numel() + w_logits.numel();
  AIGC_RUN(wavenet_step, p, p.batch, grain_of(kWork, size_product({work, p.steps})), queues);
  return {samples, logits};
}

}  // namespace

AIGC_OPS(m) {
  m.def(
      "wavenet_step_(Tensor(a!) queues, Tensor(b!) codes, Tensor(c!) times, Tensor? uniform, Tensor? given, "
      "Tensor condition, Tensor embedding, Tensor w_gate, Tensor w_out, Tensor b_out, Tensor w_hidden, "
      "Tensor b_hidden, Tensor w_logits, Tensor b_logits, int[] dilations, int hop, float temperature, "
      "bool with_logits) -> (Tensor samples, Tensor logits)");
}

AIGC_IMPL(m) { AIGC_BIND(m, "wavenet_step_", wavenet_step_); }

}  // namespace aigc
