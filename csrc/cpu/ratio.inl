// How log-densities change with the model's output, and the gradients of that.

namespace gmmkernel {
namespace {

// What the ratio of one sample needs.
template <class T>
struct SampleRatio {
  Row<T> row;
  T inverse_std;
  Source x, prev, output, old_output, uncond, old_uncond;
  Source history[GMM_MAX_HISTORY];
};

template <class T>
GMM_INLINE SampleRatio<T> gather_ratio(const gmm_log_ratio_arguments& r, int64_t sample) {
  const gmm_step_arguments& a = r.step;
  SampleRatio<T> s;
  s.row = static_cast<const Row<T>*>(a.coefficients)[index_at(a.row, sample)];
  s.inverse_std = inverse_std(s.row.sigma);
  s.x = sample_of(a.sample, sample);
  s.prev = sample_of(r.prev_sample, sample);
  s.output = sample_of(a.model_output, sample);
  s.old_output = sample_of(r.old_model_output, sample);
  s.uncond = sample_of(a.model_output_uncond, sample);
  s.old_uncond = sample_of(r.old_model_output_uncond, sample);
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
    s.history[j] = sample_of(a.history[j], sample);
    if (s.row.history[j] == 0) s.history[j].data = nullptr;
  }
  return s;
}

// A group's numbers, both last ones in units of the standard deviation: by what the mean changes, and how far the
// sample is from the old one.
template <class T>
struct GroupRatio {
  typename Group<T>::V x, change, distance;
  OutputPair<typename Group<T>::L> pair[Group<T>::n];
};

template <class T>
GMM_INLINE void load_ratio(const SampleRatio<T>& s, int64_t i, int count, GroupRatio<T>& r) {
  using G = Group<T>;
  using L = typename G::L;
  typename G::V output, old, other;
  G::load(s.x, i, count, r.x);
  G::load(s.output, i, count, output);
  G::load(s.old_output, i, count, old);
  for (int v = 0; v < G::n; ++v) r.pair[v] = {output[v], old[v], L::sub(output[v], old[v])};
  if (s.uncond.data != nullptr) {
    G::load(s.uncond, i, count, output);
    G::load(s.old_uncond, i, count, old);
    for (int v = 0; v < G::n; ++v) r.pair[v] = guide_pair<L>(s.row, output[v], old[v], r.pair[v]);
  }
  for (int v = 0; v < G::n; ++v) {
    const typename L::real old_output = r.pair[v].old_output;
    r.distance[v] = predict_mean<L>(s.row, r.x[v], old_output, predict_x0<L>(s.row, r.x[v], old_output));
  }
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
    if (s.history[j].data == nullptr) continue;
    G::load(s.history[j], i, count, other);
    for (int v = 0; v < G::n; ++v) r.distance[v] = L::fma(L::splat(s.row.history[j]), other[v], r.distance[v]);
  }
  G::load(s.prev, i, count, other);
  for (int v = 0; v < G::n; ++v) {
    r.distance[v] = L::mul(L::sub(other[v], r.distance[v]), L::splat(s.inverse_std));
    r.change[v] = L::mul(change_of_mean<L>(s.row, r.x[v], r.pair[v]), L::splat(s.inverse_std));
  }
}

// Call body(sample, number, first, count) for tiles first_tile .. last_tile - 1, counted over all samples.
template <class Body>
GMM_INLINE void for_tiles(const gmm_step_arguments& a, int64_t first_tile, int64_t last_tile, Body body) {
  const int64_t tiles = tiles_of(a.elements);
  for (int64_t t = first_tile; t < last_tile; ++t) {
    const int64_t sample = t / tiles, number = t - sample * tiles, first = number * tile;
    body(sample, number, first, static_cast<int>(a.elements - first < tile ? a.elements - first : tile));
  }
}

template <class T>
void log_ratio_tiles(const gmm_log_ratio_arguments& r, int64_t first_tile, int64_t last_tile) {
  using G = Group<T>;
  using L = typename G::L;
  const int64_t entries = tiles_of(r.step.elements) + 1;
  for_tiles(r.step, first_tile, last_tile, [&](int64_t sample, int64_t number, int64_t first, int count) {
    const SampleRatio<T> s = gather_ratio<T>(r, sample);
    T ratio[tile], divergence[tile];
    GroupRatio<T> group_ratio;
    typename G::V term;
    for (int at = 0; at < count; at += G::size) {
      load_ratio(s, first + at, count - at < G::size ? count - at : G::size, group_ratio);
      for (int v = 0; v < G::n; ++v) term[v] = ratio_term<L>(group_ratio.change[v], group_ratio.distance[v]);
      G::store_terms(ratio + at, term);
      for (int v = 0; v < G::n; ++v) term[v] = divergence_term<L>(group_ratio.change[v]);
      G::store_terms(divergence + at, term);
    }
    for (int at = count; at < tile; ++at) ratio[at] = divergence[at] = 0;
    T* sums = static_cast<T*>(r.workspace) + (sample * entries + number) * 2;
    sums[0] = sum_tile(ratio);
    sums[1] = sum_tile(divergence);
  });
}

template <class T>
void sum_ratios(const gmm_log_ratio_arguments& r) {
  const int64_t tiles = tiles_of(r.step.elements);
  for (int64_t sample = 0; sample < r.step.batch; ++sample) {
    T* sums = static_cast<T*>(r.workspace) + sample * (tiles + 1) * 2;
    for (int c = 0; c < 2; ++c) static_cast<T*>(r.result)[2 * sample + c] = sum_level(sums + c, tiles, 2);
  }
}

// Where the gradients of one sample go.
struct RatioTargets {
  Target x, output, old_output, prev, uncond, old_uncond, history[GMM_MAX_HISTORY];
};

GMM_INLINE RatioTargets gather_targets(const gmm_log_ratio_backward_arguments& b, int64_t sample) {
  RatioTargets to = {sample_of(b.grad_sample, sample),
                     sample_of(b.grad_model_output, sample),
                     sample_of(b.grad_old_model_output, sample),
                     sample_of(b.grad_prev_sample, sample),
                     sample_of(b.grad_model_output_uncond, sample),
                     sample_of(b.grad_old_model_output_uncond, sample),
                     {}};
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) to.history[j] = sample_of(b.grad_history[j], sample);
  return to;
}

template <class T>
void log_ratio_backward(const gmm_log_ratio_backward_arguments& b, int64_t first_tile, int64_t last_tile) {
  using G = Group<T>;
  using L = typename G::L;
  const int64_t tiles = tiles_of(b.of.step.elements);
  for_tiles(b.of.step, first_tile, last_tile, [&](int64_t sample, int64_t number, int64_t first, int count) {
    const SampleRatio<T> s = gather_ratio<T>(b.of, sample);
    const RatioTargets to = gather_targets(b, sample);
    const T* grad = static_cast<const T*>(b.grad) + 2 * (b.of_tiles ? sample * tiles + number : sample);
    const T of_ratio = grad[0], of_divergence = grad[1];
    const bool none = of_ratio == 0 && of_divergence == 0, guided = s.uncond.data != nullptr;
    GroupRatio<T> r;
    RatioFlow<L> flow[G::n];
    for (int at = 0; at < count; at += G::size) {
      const int64_t i = first + at;
      const int left = count - at < G::size ? count - at : G::size;
      load_ratio(s, i, left, r);
      for (int v = 0; v < G::n; ++v)
        flow[v] = ratio_back<L>(r.change[v], r.distance[v], of_ratio, of_divergence, s.inverse_std);
      const auto put = [&](const Target& target, auto value_of) {
        if (target.data == nullptr) return;
        typename G::V value;
        for (int v = 0; v < G::n; ++v) value[v] = none ? L::splat(0) : value_of(v);
        G::store(target, i, left, value);
      };
      const auto of_output = [&](int v, typename L::real output, typename L::real grad) {
        return flow_back<L>(s.row, r.x[v], output, grad, PredictionKind::none, grad).grad_output;
      };
      // Of the new outputs, then of the old ones.
      const auto put_outputs = [&](const Target& conditional, const Target& uncond, auto whole) {
        if (!guided) {
          put(conditional, whole);
          return;
        }
        const auto part = [&](int v) { return L::mul(L::splat(s.row.guidance), whole(v)); };
        put(conditional, part);
        put(uncond, [&](int v) { return L::sub(whole(v), part(v)); });
      };
      put(to.prev, [&](int v) { return flow[v].prev; });
      put_outputs(to.output, to.uncond, [&](int v) { return of_output(v, r.pair[v].output, flow[v].mean); });
      put_outputs(to.old_output, to.old_uncond,
                  [&](int v) { return of_output(v, r.pair[v].old_output, flow[v].old_mean); });
      put(to.x, [&](int v) { return shared_back<L>(s.row, r.x[v], r.pair[v], flow[v]); });
      for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
        put(to.history[j],
            [&](int v) { return L::mul(L::splat(s.row.history[j]), L::mul(L::splat(-1), flow[v].prev)); });
      }
    }
  });
}

}  // namespace
}  // namespace gmmkernel
