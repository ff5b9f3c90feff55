"""The host: tf_keras and the corners of it that this package stands on.

The only package that imports tf_keras, and the only one that knows what differs between Keras versions. Importing it
imports TFMOT first, which selects the Keras that TFMOT itself uses.
"""

import tensorflow_model_optimization

from tfqil._host.calls import (
    arguments_of,
    function_of,
    has_output_shape,
    inputs_in_order,
    is_floating,
    is_inferring_shapes,
    is_symbolic,
    joint_mask,
    keyword,
    latest_node,
    nodes_before,
    producer_of,
    run_as_before,
    with_mask,
)
from tfqil._host.framework import (
    Callback,
    Layer,
    Model,
    Optimizer,
    deserialize_object,
    keras,
    serializable,
    serialize_object,
    unpack,
)
from tfqil._host.graph import (
    Call,
    Graph,
    Node,
    as_list,
    evaluate,
    graph_of,
    replay,
    require_functional,
    scope_name,
)
from tfqil._host.kernels import (
    channel_shape,
    is_transposed,
    is_wrapped_kernel,
    kernel_name,
    kernel_replaced,
    multiplications,
    with_channels_last,
)
from tfqil._host.layers import (
    always_trains,
    annotated_config,
    batch_norms,
    copy_state,
    copy_trainable,
    is_layer,
    is_model,
    is_recurrent,
    reads_integers,
    reads_mask,
    unannotated,
)
from tfqil._host.notes import (
    is_interval,
    mark_intervals,
    note,
    owner,
    set_note,
    set_owner,
)
from tfqil._host.optimizers import (
    WrappingOptimizer,
    average_of,
    overwrites_with_average,
)
from tfqil._host.replicas import (
    require_no_xla_of_cpus,
    require_same_scope,
    update_copies,
)
