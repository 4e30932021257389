"""Those tests of tests/ops that are about one op and could come out differently on a card, which is PyTorch's
default device here. Left out: arguments that are refused before any kernel is chosen, autocast of the CPU,
threads, and tests that draw from a generator of the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.nn.test_normalization import (  # noqa: F401
    test_the_variance_of_numbers_far_from_zero,
)
from tests.ops.test_adam_ema import (  # noqa: F401
    test_any_nonfinite,
    test_autograd_refuses_a_graph_that_is_out_of_date,
    test_floats_and_tensors_give_the_same_bits,
    test_found_inf_stops_everything,
    test_gradients_may_share_memory,
    test_half_weights_have_float32_state,
    test_nothing_around_the_tensors_is_touched,
    test_shared_memory_is_refused,
    test_skip_nonfinite_stops_everything,
    test_steps_of_one_call_may_differ,
    test_the_numbers_are_those_of_pytorchs_fused_optimizer_and_lerp,
    test_values_are_within_the_error_budget,
)
from tests.ops.test_adam_ema import test_opcheck as test_opcheck_of_adam_ema  # noqa: F401
from tests.ops.test_bias_act import (  # noqa: F401
    test_compiled_code_runs_the_kernel,
    test_dim_is_not_looked_at_without_a_bias,
    test_forward_mode_differentiation,
    test_gradient_of_clamp_on_its_boundary_is_one,
    test_gradient_of_clamp_on_its_boundary_is_one_for_smooth_activations,
    test_infinite_and_extreme_inputs_as_in_pytorch,
    test_lazy_negation_is_resolved,
    test_linear_without_clamp_saves_nothing,
    test_mixed_dtypes_are_promoted,
    test_nan_in_nan_out,
    test_no_mask_is_kept_without_a_gradient,
    test_noise_and_strength_are_promoted_too,
)
from tests.ops.test_conv2d_act import (  # noqa: F401
    test_output_padding_has_a_second_derivative,
    test_r1_through_a_discriminator_is_plain_pytorchs,
)
from tests.ops.test_filtered_lrelu import (  # noqa: F401
    test_both_paths_agree,
    test_nan_stays_where_the_filters_carry_it,
    test_the_mask_has_two_bits_for_each_upsampled_pixel,
)
from tests.ops.test_gan_loss import (  # noqa: F401
    test_batches_of_different_sizes_have_their_own_means,
    test_empty_batches,
    test_formulas,
    test_gradient_of_a_mean_over_many_half_precision_logits_does_not_underflow,
    test_infinite_logits_have_the_limits_of_the_loss,
    test_large_logits_in_float32,
    test_loss_and_grad_is_the_loss_and_its_gradient,
    test_nan_gives_nan,
    test_one_empty_batch_does_not_spoil_the_sum,
    test_statistics,
    test_weight_multiplies_losses_and_means_divide_by_the_count,
)
from tests.ops.test_linear_act import test_not_finite_inputs_as_in_pytorch  # noqa: F401
from tests.ops.test_minibatch_stddev import test_it_is_its_definition  # noqa: F401
from tests.ops.test_modulated_conv2d import (  # noqa: F401
    test_large_weights_and_styles_do_not_overflow_in_half_precision,
)
from tests.ops.test_pixel_ops import (  # noqa: F401
    test_a_long_sum_has_the_error_of_a_short_one,
    test_backward_ops_check_their_arguments,
    test_bias_gradient_of_a_large_batch_is_summed_in_blocks,
    test_gated_act_keeps_the_memory_format,
    test_gated_act_promotes_to_the_wider_dtype,
    test_pixel_norm_has_unit_mean_square,
    test_square_norms_of_half_types_are_float32,
)

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def default_device(device: torch.device) -> Iterator[None]:
    with device:
        yield
