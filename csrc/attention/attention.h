// Attention of queries q_i (rows of Q) to keys k_j with values v_j, one head at a time:
//
//     S_ij = s q_i.k_j + b |k_j|^2      P = softmax of each row of S      O = P V
//
// Dot products have s = scale, b = 0. L2 distances (Kim et al. 2021) have S_ij = -scale |q_i - k_j|^2, which is
// s = 2 scale, b = -scale but for -scale |q_i|^2: the same in all of a row, it changes neither P nor, since the
// rows of dS below sum to 0, any derivative.
//
// Row i attends to the keys that are not padding and, if causal, to those of them with j <= i. They are
// numbered without the padding, so that both masks are one number: how many keys row i attends to. A row of
// none has O_i = 0. P is never kept: it is exp(S_ij - L_i) with L_i = log(sum over j of exp(S_ij)).
//
// Backward, from the gradient dO:
//
//     dP = dO V^T      d_i = sum over j of P_ij dP_ij      dS_ij = P_ij (dP_ij - d_i)
//     dQ = s dS K      dK = s dS^T Q + 2 b diag(c) K, c_j = sum over i of dS_ij      dV = P^T dO
//
// Double backward, from gradients A, B and C in dQ, dK and dV. What they are multiplied by adds up to
//
//     F = sum over i, j of T_ij dS_ij + P_ij U_ij,      T_ij = s (a_i.k_j + q_i.b_j) + 2 b b_j.k_j,   U = dO C^T
//
// F depends on dO, V through dP and U; on P through dS and U; and on Q, K through P and T. With
// t_i = sum over j of P_ij T_ij, the sum of T dS is that of P_ij dP_ij (T_ij - t_i), so
//
//     dF/d(dP_ij) = E_ij = P_ij (T_ij - t_i)
//     dF/dP_ij    = T_ij (dP_ij - d_i) - t_i dP_ij + U_ij = G_ij - t_i d_i,
//                   G_ij = (T_ij - t_i) (dP_ij - d_i) + U_ij
//     dF/dS_ij    = H_ij = P_ij (G_ij - g_i),   g_i = sum over j of P_ij G_ij       (softmax)
//     dF/dT_ij    = dS_ij
//
//     grad dO = E V + P C        grad V = E^T dO
//     grad Q  = s (H K + dS B)   grad K = s (H^T Q + dS^T A) + 2 b (diag(h) K + diag(c) B), h_j = sum of H_ij
//
// Five products over all pairs (i, j) are the factors, seven the results; the scores themselves (P, dP, T, U)
// exist for a block of queries at a time. Memory is linear in the number of keys.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

// A tensor [batch, heads, rows, columns], strides in elements.
template <class Pointer>
struct AttentionTensor {
  Pointer data = nullptr;
  int64_t batch = 0, head = 0, row = 0, column = 1;
};
using AttentionInput = AttentionTensor<const void*>;
using AttentionOutput = AttentionTensor<void*>;

struct AttentionParams {
  static constexpr int64_t kRows = 64;  // queries that are processed together

  DType dtype = DType::float32;
  bool causal = false;
  double scale = 1;      // s
  double key_scale = 0;  // b
  int64_t batch = 0, heads = 0, queries = 0, keys = 0, width = 0, value_width = 0;
  AttentionInput q, k, v;
  const uint8_t* padding = nullptr;  // [batch, keys], not 0 for a key that no query attends to; or null
  AttentionOutput o;
  void* lse = nullptr;  // L, of acc_t: [batch, heads, queries]
};

// The gradients in keys and values are sums over the queries, of which each of `parts` items has its share.
struct AttentionBackwardParams : AttentionParams {
  int64_t parts = 1;
  AttentionInput grad_o;                   // dO
  AttentionOutput grad_q, grad_k, grad_v;  // of double backward: grad Q, grad K, grad V
  void* shares = nullptr;  // of acc_t: [batch, heads, parts, keys, width + value_width]; null for one part
};

struct AttentionDoubleBackwardParams : AttentionBackwardParams {
  AttentionInput a, b, c;  // null where it is zero
  AttentionOutput grad_grad_o;
};

}  // namespace aigc

AIGC_KERNEL(attention_forward, AttentionParams)           // items: blocks of kRows queries of a head
AIGC_KERNEL(attention_backward, AttentionBackwardParams)  // items: parts of a head
AIGC_KERNEL(attention_double_backward, AttentionDoubleBackwardParams)  // items: parts of a head
AIGC_KERNEL(attention_join, AttentionBackwardParams)                   // items: heads
