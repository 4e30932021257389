// A leaky ReLU with bias on plain arrays by the library's kernel, without torch.
#include <cstdio>
#include <vector>

#include "bias_act/bias_act.h"

int main() {
  const int64_t rows = 2, channels = 4;
  const std::vector<float> x = {-2, -1, 0, 1, 2, 3, 4, 5}, bias = {1, 0, -1, -2};
  std::vector<float> y(x.size());

  aigc::BiasActParams params;
  params.act = aigc::Act::lrelu;
  params.alpha = 0.2;
  params.clamp = 3;
  params.numel = rows * channels;
  params.rows = rows;
  params.row_length = params.channels = channels;
  params.rows_per_chunk = 1;
  params.vec_is_bias = true;
  params.x = x.data();
  params.bias = bias.data();
  params.y = y.data();
  // Items are independent: a thread pool may divide [begin, end) as it likes.
  aigc::cpu::bias_act_forward(params, 0, aigc::chunk_count(params));

  std::printf("%s:", aigc::isa_name(aigc::active_isa()));
  for (float value : y) std::printf(" %g", value);
  std::printf("\n");
}
