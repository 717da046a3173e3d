// The passes of a step through a network's layers. Included once for each instruction set, inside its namespace, after
// step_batch_norm.h and step_segmented.h.

template <class T>
LinearLayer<T> linear_of(const StepLayer<T>& layer) {
  return {.in = layer.in,
          .out = layer.out,
          .activation = layer.activation,
          .weight = layer.weight.value,
          .bias = layer.bias.value};
}

template <class T>
void forward(const Pass& pass, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers, int first = 0) {
  for (int l = first; l < network.count; ++l) {
    const StepLayer<T>& layer = network.layers[l];
    switch (layer.kind) {
      case LayerKind::linear:
        linear_forward(pass, linear_of(layer), buffers.layers[l]);
        break;
      case LayerKind::batch_norm:
        batch_norm_forward(pass, layer, buffers.layers[l]);
        break;
      case LayerKind::dropout:
      case LayerKind::identity:
        dropout_forward(pass, layer, buffers.layers[l]);
        break;
      case LayerKind::segmented:
        segmented_forward(pass, layer, buffers.layers[l]);
        break;
    }
    pass.worker.layer_done();
  }
}

// The operands of the weight gradients of the layers from `lowest` on.
template <class T>
void transpose_inputs(const Pass& pass, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers, int lowest) {
  for (int l = lowest; l < network.count; ++l)
    if (network.layers[l].kind == LayerKind::linear && network.layers[l].weight.is_updated())
      transpose_input(pass, network.layers[l], buffers.layers[l], buffers.panels);
}

// What the gradients by a layer's parameters and by its input are both made of, from its grad_z.
template <class T>
void backward_sums(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers) {
  switch (layer.kind) {
    case LayerKind::batch_norm:
      batch_norm_sums(pass, layer, buffers);
      break;
    case LayerKind::linear:
    case LayerKind::dropout:
    case LayerKind::identity:
    case LayerKind::segmented:
      break;
  }
}

// Of what is behind a layer, by what is before it.
template <class T>
void layer_backward(const Pass& pass, const StepLayer<T>& layer, const LayerBuffers<T>& buffers,
                    const GradientTarget<T>& target) {
  switch (layer.kind) {
    case LayerKind::linear:
      linear_backward(pass, linear_of(layer), buffers, target);
      break;
    case LayerKind::batch_norm:
      batch_norm_backward(pass, layer, buffers, target);
      break;
    case LayerKind::dropout:
    case LayerKind::identity:
      dropout_backward(pass, layer, buffers, target);
      break;
    case LayerKind::segmented:
      segmented_backward(pass, layer, buffers, target);
      break;
  }
}

// From the last layer's grad_z down to that of layer `lowest`, and, where `beyond` is given, through layer 0 to it. To
// the gradients of the parts whose bit is set, the layers' curvature is added.
template <class T>
void backward(const Pass& pass, const StepNetwork<T>& network, const NetworkBuffers<T>& buffers, int lowest,
              const GradientTarget<T>* beyond, unsigned added_parts = 0) {
  for (int l = network.count - 1; l >= lowest; --l) {
    const StepLayer<T>& layer = network.layers[l];
    const LayerBuffers<T>& own = buffers.layers[l];
    backward_sums(pass, layer, own);
    if (l == 0 && beyond == nullptr) return;
    if (l == lowest && l > 0) return;
    if (l == 0) {
      layer_backward(pass, layer, own, *beyond);
    } else {
      const LayerBuffers<T>& before = buffers.layers[l - 1];
      const StepLayer<T>& to = network.layers[l - 1];
      layer_backward(
          pass, layer, own,
          GradientTarget<T>{before.grad_z, before.saved, to.activation, to.out, {}, before.curvature, added_parts});
    }
    pass.worker.layer_done();
  }
}
