#include "gan_loss/gan_loss_glue.h"

#include <cmath>
#include <tuple>

#include "glue/backend.h"

namespace aigc {
namespace {

constexpr int64_t kChunk = 8192;  // logits of a side in an item: about 30 us

struct Kind {
  const char* name;
  GanTerm term;
  bool paired, centred;
};
constexpr Kind kKinds[] = {
    {"logistic", GanTerm::softplus, false, false},
    {"minimax", GanTerm::softplus, false, false},
    {"hinge", GanTerm::hinge, false, false},
    {"lsgan", GanTerm::square, false, false},
    {"wgan", GanTerm::linear, false, false},
    {"relativistic", GanTerm::softplus, true, false},
    {"relativistic_avg", GanTerm::softplus, false, true},
};

const Kind& parse_kind(const std::string& name, const char* op) {
  for (const Kind& kind : kKinds)
    if (name == kind.name) return kind;
  fail(op, ": kind is '", name,
       "', but must be one of logistic, minimax, hinge, lsgan, wgan, relativistic, relativistic_avg");
}

GanReduction parse_reduction(const std::string& name, const char* op) {
  if (name == "mean") return GanReduction::mean;
  if (name == "sum") return GanReduction::sum;
  if (name == "none") return GanReduction::none;
  fail(op, ": reduction is '", name, "', but must be one of mean, sum, none");
}

// With the shape and memory format of `dense`.
Tensor empty_like(const Tensor& dense, ScalarType type) {
  return empty_strided(dense, dense.sizes(), dense.strides(), type);
}

void set_weights(GanLossParams& p, const OptionalTensor& weight, const Tensor& logits, const char* name,
                 GanLossSide& side, const char* op) {
  if (!weight) return;
  AIGC_CHECK(weight->scalar_type() == acc_type(p.dtype), op, ": weight is ",
             dtype_name(weight->scalar_type()), ", but must be ", dtype_name(acc_type(p.dtype)), " for ",
             name, " of ", dtype_name(logits.scalar_type()));
  AIGC_CHECK(logits.dim() >= 1 && weight->dim() == 1 && weight->size(0) == logits.size(0), op,
             ": weight has shape ", shape(*weight), ", but must have one number for each sample of ", name,
             ", whose shape is ", shape(logits));
  side.per_weight = logits.size(0) > 0 ? max(side.count / logits.size(0), 1) : 1;
  p.weights = weight->data_ptr();
}

struct Loss {
  Tensor loss, stats, slopes[2];
};

// Runs the kernels. `p` is complete except for what depends on the tensors. They are dense, and of the same
// format if their elements are compared.
Loss run(GanLossParams& p, const Tensor* const (&logits)[2], const char* const (&names)[2],
         const OptionalTensor& weight_any, const char* op) {
  const OptionalTensor weight = contiguous(weight_any);
  const Tensor& first = *logits[0];
  const ScalarType type = acc_type(p.dtype);
  Loss result;
  for (int i = 0; i < p.side_count; ++i) {
    GanLossSide& side = p.sides[i];
    const Tensor& x = *logits[i];
    result.slopes[i] = empty_like(x, type);
    side.logits = x.data_ptr();
    side.slopes = result.slopes[i].data_ptr();
    side.count = x.numel();
    set_weights(p, weight, x, names[i], side, op);
  }
  result.loss =
      p.reduction == GanReduction::none ? empty_like(first, type) : empty_strided(first, {}, {}, type);
  p.loss = result.loss.data_ptr();
  if (p.side_count == 2) {
    result.stats = empty_1d(first, 4, ScalarType::Float);
    p.stats = static_cast<float*>(result.stats.data_ptr());
  }
  run_gan_loss(p, first);
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> discriminator_loss_and_grad(
    const Tensor& real_any, const Tensor& fake_any, OptionalTensor weight, StringHandle kind_handle,
    double label_smoothing, double l2_weight, StringHandle reduction_handle) {
  const std::string kind_name = take_string(kind_handle), reduction = take_string(reduction_handle);
  constexpr const char* op = "discriminator_loss";
  const DType dtype = dtype_of(real_any, op, "real_logits");
  check_same_kind(fake_any, "fake_logits", real_any, "real_logits", op);
  const bool paired = compares_pairs(kind_name, op);
  GanLossParams p = discriminator_loss_params(kind_name, label_smoothing, l2_weight, op);
  p.dtype = dtype;
  p.reduction = parse_reduction(reduction, op);
  const bool same_places = paired || p.reduction == GanReduction::none;
  Tensor real = as_dense(real_any), fake = as_dense(fake_any);
  if (same_places) {
    AIGC_CHECK(real.sizes() == fake.sizes(), op, ": real_logits has shape ", shape(real), " and fake_logits ",
               shape(fake), ", but for kind ", kind_name, " and reduction ", reduction,
               " the shapes must be equal");
    if (is_channels_last(real) != is_channels_last(fake))
      real = as_format(real, false), fake = as_format(fake, false);
  }
  const Loss result = run(p, {&real, &fake}, {"real_logits", "fake_logits"}, weight, op);
  return {result.loss, result.stats, result.slopes[0], result.slopes[1]};
}

std::tuple<Tensor, Tensor> generator_loss_and_grad(const Tensor& fake_any, OptionalTensor weight,
                                                   StringHandle kind_handle, StringHandle reduction_handle) {
  const std::string kind_name = take_string(kind_handle), reduction = take_string(reduction_handle);
  constexpr const char* op = "generator_loss";
  const DType dtype = dtype_of(fake_any, op, "fake_logits");
  GanLossParams p = generator_loss_params(kind_name, op);
  p.dtype = dtype;
  p.reduction = parse_reduction(reduction, op);
  const Tensor fake = as_dense(fake_any);
  const Loss result = run(p, {&fake, nullptr}, {"fake_logits", nullptr}, weight, op);
  return {result.loss, result.slopes[0]};
}

std::tuple<Tensor, Tensor> discriminator_loss(const Tensor& real, const Tensor& fake, OptionalTensor weight,
                                              StringHandle kind_handle, double label_smoothing,
                                              double l2_weight, StringHandle reduction_handle) {
  const auto result = discriminator_loss_and_grad(real, fake, weight, kind_handle, label_smoothing, l2_weight,
                                                  reduction_handle);
  return {std::get<0>(result), std::get<1>(result)};
}

Tensor generator_loss(const Tensor& fake, OptionalTensor weight, StringHandle kind_handle,
                      StringHandle reduction_handle) {
  return std::get<0>(generator_loss_and_grad(fake, weight, kind_handle, reduction_handle));
}

}  // namespace

bool compares_pairs(const std::string& kind, const char* op) { return parse_kind(kind, op).paired; }

bool compares_batches(const std::string& kind_name, const char* op) {
  const Kind& kind = parse_kind(kind_name, op);
  return kind.paired || kind.centred;
}

GanLossParams discriminator_loss_params(const std::string& kind_name, double label_smoothing,
                                        double l2_weight, const char* op) {
  const Kind& kind = parse_kind(kind_name, op);
  AIGC_CHECK(label_smoothing >= 0 && label_smoothing < 1, op, ": label_smoothing is ", label_smoothing,
             ", but must be at least 0 and below 1");
  const bool with_targets = kind.term == GanTerm::softplus && !kind.paired && !kind.centred;
  AIGC_CHECK(label_smoothing == 0 || with_targets, op, ": label_smoothing is ", label_smoothing,
             ", but must be 0 for kind ", kind_name, ", which has no labels");
  AIGC_CHECK(std::isfinite(l2_weight) && l2_weight >= 0, op, ": l2_weight is ", l2_weight,
             ", but must be finite and at least 0");
  GanLossParams p;
  p.term = kind.term;
  p.paired = kind.paired;
  p.centred = kind.centred;
  p.needs_means = kind.centred || kind.term == GanTerm::linear;
  p.is_probability = with_targets;
  p.threshold = kind.term == GanTerm::square ? 0.5 : 0;
  p.l2 = l2_weight;
  p.sides[0].sign = -1;
  p.sides[0].target = 1;
  p.sides[0].smoothing = label_smoothing;
  p.sides[1].counts_phi = !kind.paired;
  return p;
}

GanLossParams generator_loss_params(const std::string& kind_name, const char* op) {
  const Kind& kind = parse_kind(kind_name, op);
  AIGC_CHECK(!kind.paired && !kind.centred, op, ": kind is '", kind_name,
             "', which compares two batches: its loss is discriminator_loss with real and fake swapped");
  // Fakes should be judged real. For hinge that is the linear term; for minimax, the negative of D's loss.
  const bool minimax = kind_name == "minimax";
  GanLossParams p;
  p.term = kind.term == GanTerm::hinge ? GanTerm::linear : kind.term;
  p.side_count = 1;
  p.sides[0].sign = minimax ? 1 : -1;
  p.sides[0].factor = minimax ? -1 : 1;
  p.sides[0].target = 1;
  return p;
}

void run_gan_loss(GanLossParams& p, const Tensor& like) {
  int64_t longest = 0;
  for (int i = 0; i < p.side_count; ++i) longest = max(longest, p.sides[i].count);
  p.chunk = kChunk;
  p.chunks = max(ceil_div(longest, kChunk), 1);
  const Tensor workspace = empty_1d(
      like, p.chunks * p.side_count * int64_t(sizeof(GanLossPartial) / sizeof(double)), ScalarType::Double);
  p.partials = static_cast<GanLossPartial*>(workspace.data_ptr());
  if (p.needs_means) AIGC_RUN(gan_loss_means, p, p.chunks, 1, like);
  AIGC_RUN(gan_loss_terms, p, p.chunks, 1, like);
  AIGC_RUN(gan_loss_finish, p, p.centred ? p.chunks : 1, 1, like);
}

AIGC_OPS(m) {
  m.def(
      "discriminator_loss(Tensor real_logits, Tensor fake_logits, Tensor? weight, "
      "str kind, float label_smoothing, float l2_weight, str reduction) "
      "-> (Tensor loss, Tensor stats)");
  m.def(
      "discriminator_loss_and_grad(Tensor real_logits, Tensor fake_logits, Tensor? weight, "
      "str kind, float label_smoothing, float l2_weight, str reduction) "
      "-> (Tensor loss, Tensor stats, Tensor d_real, Tensor d_fake)");
  m.def("generator_loss(Tensor fake_logits, Tensor? weight, str kind, str reduction) -> Tensor");
  m.def(
      "generator_loss_and_grad(Tensor fake_logits, Tensor? weight, str kind, str reduction) "
      "-> (Tensor loss, Tensor d_fake)");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "discriminator_loss", discriminator_loss);
  AIGC_BIND(m, "discriminator_loss_and_grad", discriminator_loss_and_grad);
  AIGC_BIND(m, "generator_loss", generator_loss);
  AIGC_BIND(m, "generator_loss_and_grad", generator_loss_and_grad);
}

}  // namespace aigc
