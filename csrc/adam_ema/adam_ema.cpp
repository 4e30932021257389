#include "adam_ema/adam_ema_glue.h"

#include <algorithm>
#include <cmath>

#include "glue/backend.h"

namespace aigc {
namespace {

constexpr int64_t kBlock = 8192;  // elements
constexpr int64_t kGrain = 4;     // blocks that are enough work for a thread

struct Name {
  const char* list;
  int64_t index = -1;  // -1: not an element of a list
};
std::string text(const Name& name) {
  std::string result = name.list;
  if (name.index >= 0) result.append("[").append(std::to_string(name.index)).append("]");
  return result;
}
std::ostream& operator<<(std::ostream& out, const Name& name) { return out << text(name); }

// The properties of a tensor, queried once: with dozens of tensors in a call, every query counts.
struct Array {
  Name name;
  ScalarType dtype;
  Sizes sizes, strides;
  int64_t numel;
  void* data;

  Array(const Tensor& t, Name name)
      : name(name),
        dtype(t.scalar_type()),
        sizes(t.sizes()),
        strides(t.strides()),
        numel(t.numel()),
        data(t.data_ptr()) {}
};

// For arrays of the same shape: is each element at the same offset?
bool same_order(const Array& a, const Array& b) {
  if (a.numel == 0) return true;
  for (size_t d = 0; d < a.sizes.size(); ++d)
    if (a.sizes[d] > 1 && a.strides[d] != b.strides[d]) return false;
  return true;
}

// Every location between the first and the last element belongs to the array, once.
bool is_dense(const Array& a) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (size_t d = a.sizes.size(); d-- > 0;)
    if (a.sizes[d] > 1) dims.emplace_back(a.strides[d], a.sizes[d]);
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return a.numel == 0;
    expected *= size;
  }
  return true;
}

void check_belongs(const Array& a, const Array& param, ScalarType dtype, const char* op) {
  AIGC_CHECK(a.dtype == dtype, op, ": ", a.name, " is ", dtype_name(a.dtype), ", but must be ",
             dtype_name(dtype), " for ", param.name, ", which is ", dtype_name(param.dtype));
  AIGC_CHECK(a.sizes == param.sizes, op, ": ", a.name, " has shape ", shape(a.sizes), ", but ", param.name,
             " has shape ", shape(param.sizes));
}

AdamNumber number(const Array& a, const char* op) {
  AIGC_CHECK(a.numel == 1 && (a.dtype == ScalarType::Float || a.dtype == ScalarType::Double), op, ": ",
             a.name, " is ", dtype_name(a.dtype), " of shape ", shape(a.sizes),
             ", but must be one number, float32 or float64");
  return {0, a.data, a.dtype == ScalarType::Double};
}

// What the op writes must not overlap anything else that it uses.
class Memory {
 public:
  explicit Memory(size_t spans) { spans_.reserve(spans); }

  void add(const Array& a, bool written) {
    if (a.numel == 0) return;
    const int64_t size = a.dtype == ScalarType::Double ? 8 : a.dtype == ScalarType::Float ? 4 : 2;
    auto* begin = static_cast<const char*>(a.data);
    spans_.push_back({begin, begin + a.numel * size, a.name, written});
  }

  void check(const char* op) {
    std::sort(spans_.begin(), spans_.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
    // Of the spans so far, those that reach furthest: of all, and of the written ones.
    const Span *any = nullptr, *written = nullptr;
    for (const Span& span : spans_) {
      const Span* before = span.written ? any : written;
      AIGC_CHECK(!before || before->end <= span.begin, op, ": ", before->name, " and ", span.name,
                 " overlap in memory");
      if (!any || span.end > any->end) any = &span;
      if (span.written && (!written || span.end > written->end)) written = &span;
    }
  }

 private:
  struct Span {
    const char *begin, *end;
    Name name;
    bool written;
  };
  std::vector<Span> spans_;
};

float* find_nonfinite(Tensor found, const std::vector<AdamSlot>& slots, int64_t elements) {
  torch::stable::zero_(found);
  AnyNonfiniteParams p;
  p.slots = slots.data();
  p.slot_count = static_cast<int64_t>(slots.size());
  p.block = kBlock;
  p.found = static_cast<float*>(found.data_ptr());
  AIGC_RUN(any_nonfinite_blocks, p, ceil_div(elements, kBlock), 2 * kGrain, found);
  return p.found;
}

// adam_work, and the step at once.
void step(const AdamTensors& tensors, AdamEmaParams p, const OptionalTensor& found_inf,
          const OptionalTensor& skipped, bool skip_nonfinite, const char* op) {
  AIGC_CHECK(!(found_inf && skip_nonfinite), op, ": found_inf and skip_nonfinite must not be given together");
  AdamWork work = adam_work(tensors, p, skipped, op);
  if (work.slots.empty()) return;
  const Tensor& like = tensors.params[0];
  if (found_inf) {
    const Array a(*found_inf, {"found_inf"});
    AIGC_CHECK(a.numel == 1 && a.dtype == ScalarType::Float, op, ": found_inf is ", dtype_name(a.dtype),
               " of shape ", shape(a.sizes), ", but must be one float32 number");
    work.params.found_inf = static_cast<const float*>(a.data);
  } else if (skip_nonfinite) {
    look_for_nonfinite(work, like);
  }
  take_step(work, like);
}

void adam_ema_(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
               const TensorList& exp_avg_sqs, const TensorList& emas, const TensorList& steps, double lr,
               double beta1, double beta2, double eps, double weight_decay, double ema_decay,
               OptionalTensor found_inf, OptionalTensor skipped, bool skip_nonfinite) {
  constexpr const char* op = "adam_ema_";
  AdamEmaParams p;
  set_rates(p, lr, beta1, beta2, eps, weight_decay, ema_decay, op);
  step({params, grads, exp_avgs, exp_avg_sqs, emas, steps}, p, found_inf, skipped, skip_nonfinite, op);
}

void adam_ema_tensor_(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                      const TensorList& exp_avg_sqs, const TensorList& emas, const TensorList& steps,
                      const Tensor& lr, const Tensor& beta1, const Tensor& beta2, double eps,
                      const Tensor& weight_decay, const Tensor& ema_decay, OptionalTensor found_inf,
                      OptionalTensor skipped, bool skip_nonfinite) {
  constexpr const char* op = "adam_ema_";
  if (params.empty()) return;
  AdamEmaParams p;
  p.lr = number(Array(lr, {"lr"}), op);
  p.beta1 = number(Array(beta1, {"beta1"}), op);
  p.beta2 = number(Array(beta2, {"beta2"}), op);
  p.weight_decay = number(Array(weight_decay, {"weight_decay"}), op);
  p.ema_decay = number(Array(ema_decay, {"ema_decay"}), op);
  p.eps = eps;
  step({params, grads, exp_avgs, exp_avg_sqs, emas, steps}, p, found_inf, skipped, skip_nonfinite, op);
}

Tensor any_nonfinite(std::vector<Tensor> tensors) {
  constexpr const char* op = "any_nonfinite";
  std::vector<AdamSlot> slots(tensors.size());
  int64_t elements = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Array a(tensors[i], {"tensors", static_cast<int64_t>(i)});
    if (!is_dense(a)) tensors[i] = torch::stable::contiguous(tensors[i]);
    AdamSlot& slot = slots[i];
    slot.dtype = dtype_of(tensors[i], op, text(a.name).c_str());
    slot.grad = tensors[i].data_ptr();
    slot.numel = a.numel;
    slot.offset = elements;
    elements += slot.numel;
  }
  const Tensor found = empty_strided(tensors[0], Sizes(), Sizes(), ScalarType::Float);
  find_nonfinite(found, slots, elements);
  return found;
}

}  // namespace

void set_rates(AdamEmaParams& p, double lr, double beta1, double beta2, double eps, double weight_decay,
               double ema_decay, const char* op) {
  AIGC_CHECK(lr >= 0 && std::isfinite(lr), op, ": lr is ", lr, ", but must be at least 0 and finite");
  AIGC_CHECK(beta1 >= 0 && beta1 < 1, op, ": beta1 is ", beta1, ", but must be at least 0 and less than 1");
  AIGC_CHECK(beta2 >= 0 && beta2 < 1, op, ": beta2 is ", beta2, ", but must be at least 0 and less than 1");
  AIGC_CHECK(ema_decay >= 0 && ema_decay <= 1, op, ": ema_decay is ", ema_decay,
             ", but must be between 0 and 1");
  AIGC_CHECK(weight_decay >= 0, op, ": weight_decay is ", weight_decay, ", but must be at least 0");
  p.lr.value = lr;
  p.beta1.value = beta1;
  p.beta2.value = beta2;
  p.weight_decay.value = weight_decay;
  p.ema_decay.value = ema_decay;
  p.eps = eps;
}

AdamWork adam_work(const AdamTensors& tensors, AdamEmaParams p, const OptionalTensor& skipped,
                   const char* op) {
  const auto& [params, grads, exp_avgs, exp_avg_sqs, emas, steps] = tensors;
  const auto count = static_cast<int64_t>(params.size());
  const auto check_length = [&](const TensorList& list, const char* name) {
    AIGC_CHECK(list.size() == params.size(), op, ": ", name, " has ", list.size(),
               " tensors, but params has ", count);
  };
  check_length(grads, "grads");
  check_length(exp_avgs, "exp_avgs");
  check_length(exp_avg_sqs, "exp_avg_sqs");
  if (!emas.empty()) check_length(emas, "emas");
  if (steps.size() != 1) check_length(steps, "steps");
  AIGC_CHECK(p.eps >= 0, op, ": eps is ", p.eps, ", but must be at least 0");
  AdamWork work;
  work.params = p;
  if (count == 0) return work;

  Memory memory(5 * count + steps.size());
  work.slots.resize(count);
  for (int64_t i = 0; i < count; ++i) {
    AdamSlot& slot = work.slots[i];
    const Array param(params[i], {"params", i});
    const auto state = [&](const Tensor& t, const char* list) {
      const Array a(t, {list, i});
      check_belongs(a, param, acc_type(slot.dtype), op);
      AIGC_CHECK(same_order(a, param), op, ": ", a.name, " has strides ", shape(a.strides), ", but ",
                 param.name, " has strides ", shape(param.strides));
      memory.add(a, true);
      return a.data;
    };
    slot.dtype = dtype_of(params[i], op, text(param.name).c_str());
    slot.numel = param.numel;
    slot.offset = work.elements;
    work.elements += slot.numel;
    AIGC_CHECK(is_dense(param), op, ": ", param.name, " has shape ", shape(param.sizes), " and strides ",
               shape(param.strides), ", but must be dense in memory");
    memory.add(param, true);
    slot.param = param.data;
    slot.exp_avg = state(exp_avgs[i], "exp_avgs");
    slot.exp_avg_sq = state(exp_avg_sqs[i], "exp_avg_sqs");
    if (!emas.empty()) slot.ema = state(emas[i], "emas");

    const Array grad(grads[i], {"grads", i});
    check_belongs(grad, param, param.dtype, op);
    if (same_order(grad, param)) {
      memory.add(grad, false);
      slot.grad = grad.data;
    } else {  // as backward(create_graph=True) may leave it
      work.copies.push_back(empty_strided(params[i], param.sizes, param.strides, param.dtype));
      torch::stable::copy_(work.copies.back(), grads[i]);
      slot.grad = work.copies.back().data_ptr();
    }
  }
  work.steps.reserve(steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    const Array a(steps[i], {"steps", static_cast<int64_t>(i)});
    work.steps.push_back(number(a, op));
    memory.add(a, true);
  }
  memory.check(op);
  if (skipped) {
    const Array a(*skipped, {"skipped"});
    AIGC_CHECK(a.numel == 1 && a.dtype == ScalarType::Long, op, ": skipped has shape ", shape(a.sizes),
               " and must be one int64 number");
    work.params.skipped = static_cast<int64_t*>(a.data);
  }
  work.params.slot_count = count;
  work.params.block = kBlock;
  work.params.step_count = static_cast<int64_t>(work.steps.size());
  return work;
}

void look_for_nonfinite(AdamWork& work, const Tensor& like) {
  work.found = empty_1d(like, 1, ScalarType::Float);
  work.params.found_inf = find_nonfinite(*work.found, work.slots, work.elements);
}

void take_step(AdamWork& work, [[maybe_unused]] const Tensor& like) {
  AdamEmaParams& p = work.params;
  p.slots = work.slots.data();
  p.steps = work.steps.data();
  AIGC_RUN(adam_ema_advance, p, 1, 1, like);
  AIGC_RUN(adam_ema_update, p, ceil_div(work.elements, kBlock), kGrain, like);
}

AIGC_OPS(m) {
  m.def(
      "adam_ema_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] emas, Tensor(e!)[] steps, "
      "float lr, float beta1, float beta2, float eps, float weight_decay, float ema_decay, "
      "Tensor? found_inf, Tensor(f!)? skipped, bool skip_nonfinite) -> ()");
  m.def(
      "adam_ema_.tensor(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] emas, Tensor(e!)[] steps, "
      "Tensor lr, Tensor beta1, Tensor beta2, float eps, Tensor weight_decay, Tensor ema_decay, "
      "Tensor? found_inf, Tensor(f!)? skipped, bool skip_nonfinite) -> ()");
  m.def("any_nonfinite(Tensor[] tensors) -> Tensor");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "adam_ema_", adam_ema_);
  AIGC_BIND(m, "adam_ema_.tensor", adam_ema_tensor_);
  AIGC_BIND(m, "any_nonfinite", any_nonfinite);
}

}  // namespace aigc
