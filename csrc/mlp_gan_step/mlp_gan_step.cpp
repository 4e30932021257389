#include "mlp_gan_step/mlp_gan_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

#include "adam_ema/adam_ema_glue.h"
#include "bias_act/bias_act_glue.h"
#include "gan_loss/gan_loss_glue.h"
#include "glue/backend.h"
#include "sample_sqnorm/sample_sqnorm.h"

namespace aigc {
namespace {

constexpr const char* kOp = "mlp_gan_step_";
constexpr int64_t kChunkElements = 8192;   // of an item, and enough work for a thread
constexpr int64_t kProductWork = 1 << 20;  // multiplications that are enough work for a thread
constexpr int64_t kBlockWork = 1 << 22;    // of an item, if it has rows enough
constexpr int64_t kRows = 256;             // of a forward that go through all layers together
constexpr int64_t kColumns = 64;           // of an item that sums over the rows
constexpr int64_t kAlignment = 64;         // bytes

// ---- matrices ---------------------------------------------------------------------------------------------

// Dense, somewhere in a tensor's memory.
struct Matrix {
  const Tensor* owner = nullptr;
  int64_t offset = 0;  // elements
  int64_t rows = 0, columns = 0;

  int64_t count() const { return rows * columns; }
  Matrix part(int64_t first, int64_t number) const {
    return {owner, offset + first * columns, number, columns};
  }
  char* data() const {
    return static_cast<char*>(owner->data_ptr()) +
           offset * (owner->scalar_type() == ScalarType::Double ? 8 : 4);
  }
  explicit operator bool() const { return owner != nullptr; }
};

struct Factor {
  const Matrix& matrix;
  bool transposed = false;
};

Factor transposed(const Matrix& matrix) { return {matrix, true}; }

Tensor view(const Matrix& m) {
  const int64_t sizes[] = {m.rows, m.columns}, strides[] = {max(m.columns, 1), 1};
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(m.owner->get(), 2, sizes, strides, m.offset, &handle));
  return Tensor(handle);
}

// Memory of one call, for many matrices.
class Workspace {
 public:
  Workspace(const Tensor& like) : like_(like), unit_(like.scalar_type() == ScalarType::Double ? 8 : 4) {}

  void reserve(Matrix& matrix, int64_t rows, int64_t columns) {
    matrix = {&memory_, size_, rows, columns};
    size_ = size_sum({size_, round_up(size_product({rows, columns}), kAlignment / unit_)});
  }
  void allocate() { memory_ = empty_1d(like_, size_, like_.scalar_type()); }

 private:
  const Tensor& like_;
  int64_t unit_, size_ = 0;
  Tensor memory_;
};

// ---- layers -----------------------------------------------------------------------------------------------

struct Layer {
  Matrix w, dw;
  const Tensor *b = nullptr, *db = nullptr;
  BiasActParams act;  // only the activation in it

  bool smooth() const { return !is_piecewise_linear(act.act); }
  int64_t out_features() const { return w.rows; }
  int64_t in_features() const { return w.columns; }
};

// A network, and what its optimizer needs. `params` and so on are weight, bias, weight, bias, ...
struct Chain {
  Chain(const char* network, const TensorList& grads, bool skip_nonfinite)
      : name(std::string(kOp) + ", " + network), grads(grads), skip_nonfinite(skip_nonfinite) {}

  std::string name;  // of the op and the network, for messages
  std::vector<Layer> layers;
  AdamWork adam;
  const TensorList& grads;
  int64_t smallest = 0;  // of the gradients
  bool skip_nonfinite;
  DType dtype = DType::float32;

  // Of layer i - 1 in `layers`: what it makes is h[i]; h[0] is the network's input.
  std::vector<Matrix> h, d, dz;
  // Of rows that a penalty is taken of; only of smooth layers.
  std::vector<Matrix> d2, eh, s;
  Matrix last_v;
  int64_t rows = 0, penalized = 0;

  size_t count() const { return layers.size(); }

  void reserve(Workspace& workspace, int64_t all_rows, int64_t penalized_rows, const Matrix& input,
               const Matrix* output) {
    rows = all_rows;
    penalized = penalized_rows;
    for (auto* list : {&h, &d, &dz, &d2, &eh, &s}) list->resize(count() + 1);
    h[0] = input;
    for (size_t i = 1; i <= count(); ++i) {
      const Layer& layer = layers[i - 1];
      const int64_t width = layer.out_features();
      const bool last = i == count();
      if (last && output)
        h[i] = *output;
      else
        workspace.reserve(h[i], last ? rows : rows + penalized, width);
      if (layer.act.act != Act::linear) workspace.reserve(d[i], rows, width);
      workspace.reserve(dz[i], rows + penalized, width);
      if (penalized == 0 || !layer.smooth()) continue;
      for (auto* list : {&d2, &eh, &s}) workspace.reserve((*list)[i], penalized, width);
      if (last) workspace.reserve(last_v, penalized, width);
    }
  }

  // out = a b, or out + a b
  void product(const Matrix& out, const Factor& a, const Factor& b, bool adds = false) {
    MlpProductParams p;
    p.dtype = dtype;
    p.m = out.rows;
    p.n = out.columns;
    p.k = a.transposed ? a.matrix.rows : a.matrix.columns;
    p.a = a.matrix.data();
    p.b = b.matrix.data();
    p.a_transposed = a.transposed;
    p.b_transposed = b.transposed;
    p.c = out.data();
    p.adds = adds;
    // Equal blocks: 13 strips alone would be 7 for one of two threads. Where B is copied for each of them, blocks of
    // few rows would copy it more often than is worth it.
    const int64_t least = max(kBlockWork / max(p.k * p.kStrip, 1), p.b_transposed ? kRows : 48);
    p.block = max(round_up(ceil_div(p.m, max(p.m / least, 1)), 6), 1);
    AIGC_RUN(mlp_product, p, ceil_div(p.m, p.block) * ceil_div(p.n, p.kStrip),
             grain_of(kProductWork, min(p.m, p.block) * p.k * p.kStrip), *out.owner);
  }

  // Of the rows from `first` on; the slopes only where a backward follows, and the second derivatives only of the
  // first rows. So many rows go through all layers at a time that the caches hold what each makes.
  void forward(int64_t first, int64_t number, bool slopes, int64_t second_rows) {
    for (int64_t done = 0; done < number; done += kRows) {
      const int64_t row = first + done, rows = min(kRows, number - done);
      for (size_t i = 1; i <= count(); ++i) {
        const Layer& layer = layers[i - 1];
        const Matrix out = h[i].part(row, rows);
        product(out, {h[i - 1].part(row, rows)}, transposed(layer.w));
        MlpForwardParams p;
        p.dtype = dtype;
        p.act = layer.act.act;
        p.alpha = layer.act.alpha;
        p.gain = layer.act.gain;
        p.rows = out.rows;
        p.columns = out.columns;
        p.chunk = max(kChunkElements / max(out.columns, 1), 1);
        p.b = layer.b->data_ptr();
        p.h = out.data();
        if (slopes && d[i]) p.d = d[i].part(row, rows).data();
        if (second_rows > done && d2[i]) {
          p.second_rows = min(second_rows - done, rows);
          p.d2 = d2[i].part(done, p.second_rows).data();
        }
        AIGC_RUN(mlp_forward, p, ceil_div(p.rows, p.chunk), 1, *out.owner);
      }
    }
  }

  // dz of layer i from dh; `first` is the first row of d.
  void through_activation(size_t i, const Matrix& dh, const Matrix& out, int64_t first, const Matrix& added,
                          const Tensor* db) {
    MlpBackwardParams p;
    p.dtype = dtype;
    p.rows = out.rows;
    p.columns = out.columns;
    p.chunk = kColumns;
    p.dh = dh.data();
    if (d[i]) p.d = d[i].part(first, out.rows).data();
    p.gain = layers[i - 1].act.gain;
    if (added) {
      p.add = added.data();
      p.added = added.rows;
    }
    p.dz = out.data();
    if (db) p.db = db->data_ptr();
    AIGC_RUN(mlp_backward, p, ceil_div(p.columns, p.chunk), grain_of(kChunkElements, p.rows * p.chunk),
             *out.owner);
  }

  // From dh of the last layer, which is in dz[count()], in rows from `first` on, to dx, if it is wanted; or it
  // is added to what is there.
  void backward(int64_t first, int64_t number, bool parameters, const Matrix* dx = nullptr,
                bool adds = false) {
    for (size_t i = count(); i > 0; --i) {
      const Layer& layer = layers[i - 1];
      const Matrix now = dz[i].part(first, number);
      through_activation(i, now, now, first, parameters ? s[i] : Matrix(), parameters ? layer.db : nullptr);
      if (parameters) {
        const int64_t all = number + penalized;
        product(layer.dw, transposed(dz[i].part(first, all)), {h[i - 1].part(first, all)});
      }
      if (i > 1)
        product(dz[i - 1].part(first, number), {now}, {layer.w});
      else if (dx)
        product(*dx, {now}, {layer.w}, adds);
    }
  }

  // The gradient of the sum of the outputs of the first rows, in the rows of h[0] behind all others.
  void input_gradient() {
    const auto place = [&](size_t i) { return eh[i] ? eh[i] : dz[i].part(rows, penalized); };
    const Matrix top = place(count());
    dispatch_acc(dtype,
                 [&]<class T>(T*) { std::fill_n(reinterpret_cast<T*>(top.data()), top.count(), T(1)); });
    for (size_t i = count(); i > 0; --i) {
      const Matrix e = dz[i].part(rows, penalized);
      through_activation(i, place(i), e, 0, Matrix(), nullptr);
      product(i > 1 ? place(i - 1) : h[0].part(rows, penalized), {e}, {layers[i - 1].w});
    }
  }

  // From v of h[0]'s last rows to v and s of all layers.
  void second_order() {
    for (size_t i = 1; i <= count(); ++i) {
      const Layer& layer = layers[i - 1];
      const Matrix v = i < count() ? h[i].part(rows, penalized) : last_v;
      if (!v) continue;
      product(v, {h[i - 1].part(rows, penalized)}, transposed(layer.w));
      MlpSecondParams p;
      p.dtype = dtype;
      p.count = v.count();
      p.chunk = kChunkElements;
      if (d[i]) p.d = d[i].data();
      p.gain = layer.act.gain;
      if (d2[i]) {
        p.d2 = d2[i].data();
        p.eh = eh[i].data();
        p.s = s[i].data();
      }
      p.v = v.data();
      AIGC_RUN(mlp_second, p, ceil_div(p.count, p.chunk), 1, *v.owner);
    }
  }

  // A loss that is not finite can have finite gradients: softplus of an overflown logit has slope 1.
  void step(double loss, const Tensor& like) {
    if (!std::isfinite(loss)) {
      const Tensor& gradient = grads[smallest];
      dispatch_acc(dtype, [&]<class T>(T*) {
        std::fill_n(static_cast<T*>(gradient.data_ptr()), gradient.numel(), T(NAN));
      });
    }
    if (skip_nonfinite) look_for_nonfinite(adam, like);
    take_step(adam, like);
  }
};

Matrix matrix_of(const Tensor& t) { return {&t, 0, t.size(0), t.size(1)}; }

Chain make_chain(const char* network, const Tensor& like, int64_t in_features, const AdamTensors& tensors,
                 const OptionalTensor& skipped, bool skip_nonfinite, bool learns, StringHandle acts_handle,
                 const std::vector<double>& alphas, const std::vector<double>& gains,
                 const std::vector<double>& rates) {
  std::istringstream acts(take_string(acts_handle));
  Chain chain(network, tensors.grads, skip_nonfinite);
  const char* op = chain.name.c_str();
  const size_t count = alphas.size();
  AIGC_CHECK(count >= 1 && gains.size() == count && tensors.params.size() == 2 * count, op, ": params has ",
             tensors.params.size(), " tensors, alphas ", count, " and gains ", gains.size(),
             " numbers, but there must be a weight, a bias, an alpha and a gain for each layer");
  AIGC_CHECK(rates.size() == 6, op, ": rates has ", rates.size(),
             " numbers, but must have lr, beta1, beta2, eps, weight_decay and ema_decay");
  chain.dtype = dtype_of(like, op, "z");
  AdamEmaParams adam;
  set_rates(adam, rates[0], rates[1], rates[2], rates[3], rates[4], rates[5], op);
  for (size_t i = 0; i < 2 * count; ++i) {
    const std::string name = "params[" + std::to_string(i) + "]";
    const Tensor& param = tensors.params[i];
    check_same_kind(param, name.c_str(), like, "z", op);
    AIGC_CHECK(param.is_contiguous(), op, ": ", name, " has shape ", shape(param), " and strides ",
               shape(param.strides()), ", but must be contiguous");
  }
  if (learns) chain.adam = adam_work(tensors, adam, skipped, op);
  for (size_t i = 0; i < count; ++i) {
    const Tensor &w = tensors.params[2 * i], &b = tensors.params[2 * i + 1];
    AIGC_CHECK(w.dim() == 2 && w.size(1) == in_features, op, ": params[", 2 * i, "] has shape ", shape(w),
               ", but must be [out_features, ", in_features, "]");
    const std::string name = "params[" + std::to_string(2 * i + 1) + "]";
    check_vector(b, name.c_str(), w.size(0), op);
    Layer layer{matrix_of(w), {}, &b, nullptr, {}};
    if (learns) {
      for (const size_t index : {2 * i, 2 * i + 1}) {
        const Tensor& grad = tensors.grads[index];
        AIGC_CHECK(grad.is_contiguous(), op, ": grads[", index, "] has strides ", shape(grad.strides()),
                   ", but must be contiguous");
        if (grad.numel() < tensors.grads[size_t(chain.smallest)].numel()) chain.smallest = int64_t(index);
      }
      layer.dw = matrix_of(tensors.grads[2 * i]);
      layer.db = &tensors.grads[2 * i + 1];
    }
    std::string act;
    AIGC_CHECK(std::getline(acts, act, ','), op, ": acts has ", i, " names, but there are ", count,
               " layers");
    set_activation(layer.act, act, alphas[i], gains[i], std::nullopt, op);
    in_features = w.size(0);
    chain.layers.push_back(layer);
  }
  std::string more;
  AIGC_CHECK(!std::getline(acts, more), op, ": acts has more names than there are layers, which are ", count);
  return chain;
}

// ---- the step ---------------------------------------------------------------------------------------------

// The mean over samples of |x|^2, for each of so many groups of rows, one behind the other; and with a factor
// x becomes factor * x.
std::vector<double> mean_squares(const Matrix& x, DType dtype, size_t groups, double factor) {
  SampleParams p;
  p.dtype = dtype;
  p.samples = x.rows;
  p.length = x.columns;
  p.chunk = min(max(p.length, 1), kChunkElements);
  p.a = p.b = x.data();
  const int64_t chunks = p.samples * chunks_per_sample(p), grain = grain_of(kChunkElements, p.chunk);
  const Tensor partials = empty_1d(*x.owner, chunks, ScalarType::Double);
  const Tensor squares = empty_1d(*x.owner, p.samples, x.owner->scalar_type());
  p.partials = static_cast<double*>(partials.data_ptr());
  p.dot = squares.data_ptr();
  AIGC_RUN(sample_dot_chunks, p, chunks, grain, *x.owner);
  AIGC_RUN(sample_dot_reduce, p, p.samples, 1024, *x.owner);
  std::vector<double> means(groups);
  const int64_t size = p.samples / int64_t(groups);
  dispatch_acc(dtype, [&]<class T>(T*) {
    T* each = static_cast<T*>(squares.data_ptr());
    for (size_t group = 0; group < groups; ++group) {
      double sum = 0;
      for (int64_t i = 0; i < size; ++i) sum += double(each[int64_t(group) * size + i]);
      means[group] = sum / double(size);
    }
    if (factor != 0) std::fill_n(each, p.samples, T(factor));
  });
  if (factor != 0) {
    p.s = p.dot;
    p.y = x.data();
    AIGC_RUN(sample_scale_chunks, p, chunks, grain, *x.owner);
  }
  return means;
}

// The loss of one or two blocks of logits, whose slopes it writes; `stats` are a discriminator's, or null.
double loss_of(GanLossParams p, DType dtype, std::initializer_list<std::pair<Matrix, Matrix>> sides,
               float* stats) {
  p.dtype = dtype;
  GanLossSide* side = p.sides;
  for (const auto& [logits, slopes] : sides) {
    side->logits = logits.data();
    side->slopes = slopes.data();
    side->count = logits.count();
    ++side;
  }
  float single = 0;
  double wide = 0;
  const bool is_double = dtype == DType::float64;
  p.loss = is_double ? static_cast<void*>(&wide) : &single;
  p.stats = stats;
  run_gan_loss(p, *sides.begin()->first.owner);
  return is_double ? wide : double(single);
}

std::tuple<Tensor, Tensor> mlp_gan_step_(
    const Tensor& real_any, const Tensor& z_any, const TensorList& g_params, const TensorList& g_grads,
    const TensorList& g_exp_avgs, const TensorList& g_exp_avg_sqs, const TensorList& g_emas,
    const TensorList& g_steps, OptionalTensor g_skipped, const TensorList& d_params,
    const TensorList& d_grads, const TensorList& d_exp_avgs, const TensorList& d_exp_avg_sqs,
    const TensorList& d_emas, const TensorList& d_steps, OptionalTensor d_skipped, StringHandle g_acts,
    std::vector<double> g_alphas, std::vector<double> g_gains, std::vector<double> g_rates,
    bool g_skip_nonfinite, StringHandle d_acts, std::vector<double> d_alphas, std::vector<double> d_gains,
    std::vector<double> d_rates, bool d_skip_nonfinite, StringHandle kind_handle, double label_smoothing,
    double l2_weight, double gamma, bool r2, bool train_generator, int64_t spare) {
  const std::string kind = take_string(kind_handle);
  const ScalarType type = z_any.scalar_type();
  AIGC_CHECK(type == ScalarType::Float || type == ScalarType::Double, kOp, ": z is ", dtype_name(type),
             ", but must be float32 or float64");
  check_same_kind(real_any, "real", z_any, "z", kOp);
  AIGC_CHECK(z_any.dim() == 2 && z_any.size(0) >= 1, kOp, ": z has shape ", shape(z_any),
             ", but must be [N, in_features], N at least 1");
  const int64_t batch = z_any.size(0);
  AIGC_CHECK(real_any.dim() >= 2 && real_any.size(0) == batch, kOp, ": real has shape ", shape(real_any),
             ", but must be [", batch, ", ...], as z of shape ", shape(z_any));
  AIGC_CHECK(spare >= 0 && spare <= 64, kOp, ": spare is ", spare, ", but must be from 0 to 64");
  const int64_t pixels = real_any.numel() / batch;
  AdamTensors g_tensors{g_params, g_grads, g_exp_avgs, g_exp_avg_sqs, g_emas, g_steps};
  AdamTensors d_tensors{d_params, d_grads, d_exp_avgs, d_exp_avg_sqs, d_emas, d_steps};
  Chain g = make_chain("generator", z_any, z_any.size(1), g_tensors, g_skipped, g_skip_nonfinite,
                       train_generator, g_acts, g_alphas, g_gains, g_rates);
  AIGC_CHECK(g.layers.back().out_features() == pixels, kOp, ": the generator makes ",
             g.layers.back().out_features(), " numbers, but a real image has ", pixels);
  Chain d = make_chain("discriminator", z_any, pixels, d_tensors, d_skipped, d_skip_nonfinite, true, d_acts,
                       d_alphas, d_gains, d_rates);
  const bool swaps = compares_batches(kind, kOp);
  const GanLossParams d_loss = discriminator_loss_params(kind, label_smoothing, l2_weight, kOp);
  const GanLossParams g_loss =
      swaps ? discriminator_loss_params(kind, 0, 0, kOp) : generator_loss_params(kind, kOp);

  const Tensor z = as_format(z_any, false), real = as_format(real_any, false);
  const int64_t penalized = size_product({gamma == 0 ? 0 : r2 ? 2 : 1, batch});
  const int64_t sizes[] = {size_sum({batch, batch, penalized}), pixels}, strides[] = {max(pixels, 1), 1};
  const Tensor images = empty_strided(z, {sizes, 2}, {strides, 2}, type);
  const Matrix x = matrix_of(images), fake = x.part(batch, batch);
  Workspace workspace(z);
  g.reserve(workspace, batch, 0, matrix_of(z), &fake);
  d.reserve(workspace, 2 * batch, penalized, x, nullptr);
  workspace.allocate();

  float stats[4];
  double loss_d = 0, loss_g = NAN, r1_mean = NAN, r2_mean = NAN;
  const Matrix &logits = d.h.back(), &slopes = d.dz.back();
  const auto of_real = [&](const Matrix& m) { return m.part(0, batch); };
  const auto of_fake = [&](const Matrix& m) { return m.part(batch, batch); };

  std::memcpy(x.data(), real.data_ptr(), size_t(batch * pixels) * (type == ScalarType::Double ? 8 : 4));
  g.forward(0, batch, train_generator, 0);
  d.forward(0, 2 * batch, true, penalized);
  loss_d = loss_of(d_loss, d.dtype, {{of_real(logits), of_real(slopes)}, {of_fake(logits), of_fake(slopes)}},
                   stats);
  if (penalized > 0) {
    d.input_gradient();
    const auto means = mean_squares(x.part(2 * batch, penalized), d.dtype, r2 ? 2 : 1, gamma / double(batch));
    r1_mean = means[0];
    if (r2) r2_mean = means[1];
    loss_d += gamma / 2 * (r2 ? r1_mean + r2_mean : r1_mean);
    d.second_order();
  }
  d.backward(0, 2 * batch, true);
  d.step(loss_d, z);

  if (train_generator) {
    swaps ? d.forward(0, 2 * batch, true, 0) : d.forward(batch, batch, true, 0);
    loss_g = swaps
                 ? loss_of(g_loss, d.dtype,
                           {{of_fake(logits), of_fake(slopes)}, {of_real(logits), of_real(slopes)}}, nullptr)
                 : loss_of(g_loss, d.dtype, {{of_fake(logits), of_fake(slopes)}}, nullptr);
    if (l2_weight != 0) {
      loss_g += l2_weight / 2 * mean_squares(fake, d.dtype, 1, 0)[0];
      dispatch_acc(d.dtype, [&]<class T>(T*) {
        const T* image = reinterpret_cast<const T*>(fake.data());
        T* slope = reinterpret_cast<T*>(g.dz.back().data());
        for (int64_t i = 0; i < fake.count(); ++i) slope[i] = T(l2_weight / double(batch)) * image[i];
      });
    }
    d.backward(batch, batch, false, &g.dz.back(), l2_weight != 0);
    g.backward(0, batch, true);
    g.step(loss_g, z);
  }

  const Tensor statistics = empty_1d(z, 8 + spare, type);
  dispatch_acc(d.dtype, [&]<class T>(T*) {
    const double wrong = loss_d * 0;  // a NaN is neither right nor wrong
    const double values[] = {loss_d,           loss_g,           stats[0], stats[1],
                             stats[2] + wrong, stats[3] + wrong, r1_mean,  r2_mean};
    T* entries = static_cast<T*>(statistics.data_ptr());
    for (int64_t i = 0; i < 8 + spare; ++i) entries[i] = i < 8 ? T(values[i]) : T(NAN);
  });
  return {statistics, view(fake)};
}

}  // namespace

AIGC_OPS(m) {
  m.def(
      "mlp_gan_step_(Tensor real, Tensor z, "
      "Tensor(a!)[] g_params, Tensor(b!)[] g_grads, Tensor(c!)[] g_exp_avgs, Tensor(d!)[] g_exp_avg_sqs, "
      "Tensor(e!)[] g_emas, Tensor(f!)[] g_steps, Tensor(g!)? g_skipped, "
      "Tensor(h!)[] d_params, Tensor(i!)[] d_grads, Tensor(j!)[] d_exp_avgs, Tensor(k!)[] d_exp_avg_sqs, "
      "Tensor(l!)[] d_emas, Tensor(m!)[] d_steps, Tensor(n!)? d_skipped, "
      "str g_acts, float[] g_alphas, float[] g_gains, float[] g_rates, bool g_skip_nonfinite, "
      "str d_acts, float[] d_alphas, float[] d_gains, float[] d_rates, bool d_skip_nonfinite, "
      "str kind, float label_smoothing, float l2_weight, float gamma, bool r2, bool train_generator, "
      "int spare) "
      "-> (Tensor statistics, Tensor fake)");
}

AIGC_IMPL(m) { AIGC_BIND(m, "mlp_gan_step_", mlp_gan_step_); }

}  // namespace aigc
