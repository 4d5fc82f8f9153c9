// Log-densities of transitions, and their gradients. Sums over elements go tile by tile, those of tables by elements.

namespace gmmkernel {
namespace {

// What the density of one sample needs.
template <class T>
struct SampleDensity {
  int64_t row_index;
  Row<T> row;
  T inverse_sigma;
  Source x, output, uncond, prev;
  Source history[GMM_MAX_HISTORY];  // those whose coefficient is not 0
  T history_coefficient[GMM_MAX_HISTORY];
  int history_count;
  int64_t components, elements;
  const T* weights;
  const T* offsets;  // [K][elements]
  const T* std;      // [std_components][std_elements]
  int64_t std_components, std_elements;
};

template <class T>
GMM_INLINE SampleDensity<T> gather_density(const gmm_log_prob_arguments& p, int64_t sample) {
  const gmm_step_arguments& a = p.step;
  const gmm_mixture& m = a.mixture;
  SampleDensity<T> s;
  s.row_index = index_at(a.row, sample);
  s.row = static_cast<const Row<T>*>(a.coefficients)[s.row_index];
  s.inverse_sigma = OneLane<T>::Lanes::div(1, s.row.sigma);
  s.x = sample_of(a.sample, sample);
  s.output = sample_of(a.model_output, sample);
  s.uncond = sample_of(a.model_output_uncond, sample);
  s.prev = sample_of(p.prev_sample, sample);
  s.history_count = 0;
  for (int j = 0; j < GMM_MAX_HISTORY; ++j) {
    if (a.history[j].data == nullptr || s.row.history[j] == 0) continue;
    s.history[s.history_count] = sample_of(a.history[j], sample);
    s.history_coefficient[s.history_count++] = s.row.history[j];
  }
  s.components = m.components;
  s.elements = a.elements;
  s.weights = s.offsets = s.std = nullptr;
  s.std_components = 1;
  s.std_elements = 0;
  if (m.components > 0) {
    s.weights = static_cast<const T*>(p.weights) + table_row(p.weight_rows, s.row_index) * m.components;
    s.offsets = static_cast<const T*>(m.offsets) + table_row(m.offset_rows, s.row_index) * m.components * a.elements;
    s.std_components = m.std_components;
    s.std_elements = m.std_elements;
    s.std = static_cast<const T*>(m.std) + table_row(m.std_rows, s.row_index) * m.std_components * m.std_elements;
  }
  return s;
}

// The sample less the mean before any offset, `count` elements from `i`.
template <class T>
GMM_INLINE void load_distance(const SampleDensity<T>& s, int64_t i, int count, typename Group<T>::V& a) {
  using G = Group<T>;
  using L = typename G::L;
  typename G::V x, o, other;
  G::load(s.x, i, count, x);
  G::load(s.output, i, count, o);
  if (s.uncond.data != nullptr) {
    G::load(s.uncond, i, count, other);
    for (int v = 0; v < G::n; ++v) o[v] = guide<L>(s.row, other[v], o[v]);
  }
  for (int v = 0; v < G::n; ++v) a[v] = predict_mean<L>(s.row, x[v], o[v], predict_x0<L>(s.row, x[v], o[v]));
  for (int j = 0; j < s.history_count; ++j) {
    G::load(s.history[j], i, count, other);
    for (int v = 0; v < G::n; ++v) a[v] = L::fma(L::splat(s.history_coefficient[j]), other[v], a[v]);
  }
  G::load(s.prev, i, count, other);
  for (int v = 0; v < G::n; ++v) a[v] = L::sub(other[v], a[v]);
}

// The standard deviations of component k.
template <class T>
GMM_INLINE void load_std(const SampleDensity<T>& s, int64_t k, int64_t i, int count, typename Group<T>::V& std) {
  using G = Group<T>;
  const T* table = s.std + (s.std_components == 1 ? 0 : k) * s.std_elements;
  const int64_t from_table = s.std_elements - i;
  if (from_table >= count) {
    G::load({table, table_dtype<T>}, i, count, std);
  } else if (from_table <= 0) {
    for (int v = 0; v < G::n; ++v) std[v] = G::L::splat(s.row.sigma);
  } else {
    T mixed[G::size];
    for (int e = 0; e < G::size; ++e) mixed[e] = e < from_table ? table[i + e] : s.row.sigma;
    G::load({mixed, table_dtype<T>}, 0, G::size, std);
  }
}

template <class T>
GMM_INLINE void load_inverse_std(const SampleDensity<T>& s, int64_t k, int64_t i, int count,
                                 typename Group<T>::V& inverse) {
  using G = Group<T>;
  using L = typename G::L;
  if (i >= s.std_elements) {
    for (int v = 0; v < G::n; ++v) inverse[v] = L::splat(s.inverse_sigma);
    return;
  }
  load_std(s, k, i, count, inverse);
  for (int v = 0; v < G::n; ++v) inverse[v] = L::div(L::splat(1), inverse[v]);
}

// How far component k's mean is from the sample, given the distance `a` without offset.
template <class T>
GMM_INLINE void load_offset_from(const SampleDensity<T>& s, int64_t k, int64_t i, int count,
                                 const typename Group<T>::V& a, typename Group<T>::V& d) {
  using G = Group<T>;
  for (int v = 0; v < G::n; ++v) d[v] = a[v];
  if (s.components == 0 || s.row.offset == 0) return;
  typename G::V offset;
  G::load({s.offsets + k * s.elements, table_dtype<T>}, i, count, offset);
  for (int v = 0; v < G::n; ++v) d[v] = offset_from<typename G::L>(s.row, a[v], offset[v]);
}

// The sums of a tile in `sums`: of a Gaussian without offset, then how every component differs from it.
template <class T>
void density_tile(const SampleDensity<T>& s, int64_t first, int count, T* sums) {
  using G = Group<T>;
  using L = typename G::L;
  using V = typename G::V;
  constexpr int n = G::n;
  T distance[tile], base[tile], inverse[tile], log_std[tile], terms[tile];
  V a, b, std, log_0, d, value;
  const auto left = [&](int at) { return count - at < G::size ? count - at : G::size; };
  const auto sum = [&] {
    for (int at = count; at < tile; ++at) terms[at] = 0;
    return sum_tile(terms);
  };
  if (s.components == 0) {
    using One = typename OneLane<T>::Lanes;
    const typename L::real inverse_std = L::splat(s.inverse_sigma), log_std = L::splat(logarithm<One>(s.row.sigma));
    for (int at = 0; at < count; at += G::size) {
      load_distance(s, first + at, left(at), a);
      for (int v = 0; v < n; ++v) value[v] = base_term<L>(L::mul(a[v], inverse_std), log_std);
      G::store_terms(terms + at, value);
    }
    sums[0] = sum();
    return;
  }
  for (int at = 0; at < count; at += G::size) {
    load_distance(s, first + at, left(at), a);
    load_std(s, 0, first + at, left(at), std);
    for (int v = 0; v < n; ++v) {
      log_0[v] = logarithm<L>(std[v]);
      std[v] = L::div(L::splat(1), std[v]);
      b[v] = L::mul(a[v], std[v]);
      value[v] = base_term<L>(b[v], log_0[v]);
    }
    G::store_terms(terms + at, value);
    G::store_terms(distance + at, a);
    G::store_terms(base + at, b);
    G::store_terms(inverse + at, std);
    G::store_terms(log_std + at, log_0);
  }
  sums[0] = sum();
  for (int64_t k = 0; k < s.components; ++k) {
    for (int at = 0; at < count; at += G::size) {
      G::load_terms(distance + at, a);
      G::load_terms(base + at, b);
      G::load_terms(log_std + at, log_0);
      load_offset_from(s, k, first + at, left(at), a, d);
      if (s.std_components == 1) {
        G::load_terms(inverse + at, std);
        for (int v = 0; v < n; ++v) value[v] = L::sub(log_0[v], log_0[v]);
      } else {
        load_std(s, k, first + at, left(at), std);
        for (int v = 0; v < n; ++v) {
          value[v] = L::sub(logarithm<L>(std[v]), log_0[v]);
          std[v] = L::div(L::splat(1), std[v]);
        }
      }
      for (int v = 0; v < n; ++v) value[v] = difference_term<L>(L::mul(d[v], std[v]), b[v], value[v]);
      G::store_terms(terms + at, value);
    }
    sums[1 + k] = sum();
  }
}

template <class T>
void log_prob_tiles(const gmm_log_prob_arguments& p, int64_t first_tile, int64_t last_tile) {
  const int64_t elements = p.step.elements, tiles = tiles_of(elements), columns = p.step.mixture.components + 1;
  for (int64_t t = first_tile; t < last_tile;) {
    const int64_t sample = t / tiles;
    const SampleDensity<T> s = gather_density<T>(p, sample);
    for (; t < last_tile && t / tiles == sample; ++t) {
      const int64_t number = t - sample * tiles, first = number * tile;
      const int count = static_cast<int>(elements - first < tile ? elements - first : tile);
      density_tile(s, first, count, static_cast<T*>(p.workspace) + (sample * (tiles + 1) + number) * columns);
    }
  }
}

// From the tiles' sums to the log-density and the shares of samples first .. last - 1.
template <class T>
void log_prob_samples(const gmm_log_prob_arguments& p, int64_t first_sample, int64_t last_sample) {
  using L = typename OneLane<T>::Lanes;
  const int64_t tiles = tiles_of(p.step.elements), components = p.step.mixture.components;
  for (int64_t sample = first_sample; sample < last_sample; ++sample) {
    const SampleDensity<T> s = gather_density<T>(p, sample);
    T* partial = static_cast<T*>(p.workspace) + sample * (tiles + 1) * (components + 1);
    T* sums = partial + tiles * (components + 1);
    for (int64_t c = 0; c <= components; ++c) sums[c] = sum_level(partial + c, tiles, components + 1);
    T& result = static_cast<T*>(p.log_prob)[sample];
    if (components == 0) {
      result = log_density(sums[0], p.step.elements);
      continue;
    }
    T* level = sums + 1;
    if (p.energies != nullptr) {
      for (int64_t k = 0; k < components; ++k) static_cast<T*>(p.energies)[sample * components + k] = level[k];
    }
    const T* penalties = static_cast<const T*>(p.penalties);
    T largest = -__builtin_huge_val();
    for (int64_t k = 0; k < components; ++k) {
      level[k] = L::sub(logarithm<L>(s.weights[k]), level[k]);
      if (penalties != nullptr) level[k] = L::sub(level[k], penalties[sample * components + k]);
      if (level[k] > largest || level[k] != level[k]) largest = level[k];
      if (largest != largest) break;
    }
    T parts[tile], summed[tile];
    for (int k = 0; k < tile; ++k) {
      parts[k] = k < components ? exponential<L>(L::sub(level[k], largest)) : T(0);
      summed[k] = parts[k];
    }
    const T sum = sum_tile(summed);
    result = log_density(largest, sum, sums[0], p.step.elements);
    if (p.responsibilities == nullptr) continue;
    T* shares = static_cast<T*>(p.responsibilities) + sample * components;
    for (int64_t k = 0; k < components; ++k) shares[k] = L::div(parts[k], sum);
  }
}
static_assert(GMM_MAX_COMPONENTS <= tile, "the components are summed as one tile");

// ---- gradients ----

// What a loss gives a sample's density, and the components of it.
template <class T>
struct DensityGrad {
  T grad;
  const T* shares;  // [K], nullptr without a mixture
};

template <class T>
GMM_INLINE DensityGrad<T> gather_grad(const gmm_log_prob_backward_arguments& b, int64_t sample, int64_t number = 0) {
  const T* shares = static_cast<const T*>(b.of.responsibilities);
  const int64_t components = b.of.step.mixture.components;
  const int64_t place = b.of_tiles ? sample * tiles_of(b.of.step.elements) + number : sample;
  return {static_cast<const T*>(b.grad_log_prob)[place], components == 0 ? nullptr : shares + sample * components};
}

template <class T>
void log_prob_backward_tile(const SampleDensity<T>& s, const DensityGrad<T>& g, const SampleBackward<T>& to,
                            const Target& grad_prev, int64_t first, int count, T* sums) {
  using G = Group<T>;
  using L = typename G::L;
  using V = typename G::V;
  constexpr int n = G::n;
  Terms<T> terms;
  V a, std, d, offset, mean, sigma, weight, value;
  for (int at = 0; at < count; at += G::size) {
    const int64_t i = first + at;
    const int left = count - at < G::size ? count - at : G::size;
    load_distance(s, i, left, a);
    for (int v = 0; v < n; ++v) mean[v] = sigma[v] = weight[v] = offset[v] = L::splat(0);
    for (int64_t k = 0; k < (s.components == 0 ? 1 : s.components); ++k) {
      const typename L::real share = L::splat(s.components == 0 ? T(1) : g.shares[k]);
      load_offset_from(s, k, i, left, a, d);
      if (k == 0 || s.std_components > 1) load_inverse_std(s, k, i, left, std);
      if (sums != nullptr && s.components > 0) {
        G::load({s.offsets + k * s.elements, table_dtype<T>}, i, left, offset);
      }
      for (int v = 0; v < n; ++v) {
        const DensityUnits<L> units = density_units<L>(d[v], std[v]);
        mean[v] = L::fma(share, units.mean, mean[v]);
        if (sums == nullptr) continue;
        sigma[v] = L::fma(share, units.std, sigma[v]);
        if (s.components > 0) weight[v] = L::fma(share, L::mul(units.mean, offset[v]), weight[v]);
      }
    }
    for (int v = 0; v < n; ++v) mean[v] = L::mul(L::splat(g.grad), mean[v]);
    if (grad_prev.data != nullptr) {
      for (int v = 0; v < n; ++v) value[v] = L::mul(L::splat(-1), mean[v]);
      G::store(grad_prev, i, left, value);
    }
    backward_group<T>(to, sums != nullptr || clips(s.row), first, count, at, mean, sums == nullptr ? nullptr : &terms);
    if (sums == nullptr) continue;
    put_terms<T>(terms, GMM_SIGMA, at, [&](int v) { return L::mul(L::splat(g.grad), sigma[v]); });
    if (s.components > 0) {
      put_terms<T>(terms, GMM_OFFSET, at, [&](int v) { return L::mul(L::splat(g.grad), weight[v]); });
    }
  }
  if (sums != nullptr) sum_terms(to, terms, first, count, sums);
}

// Of a sample that has no part in the loss, whose gradient of the log-density is 0: zeros, though it may be NaN itself.
template <class T>
void write_no_gradients(const SampleBackward<T>& to, const Target& grad_prev, int64_t first, int count, T* sums) {
  using G = Group<T>;
  typename G::V zero;
  for (int v = 0; v < G::n; ++v) zero[v] = G::L::splat(0);
  const auto fill = [&](const Target& target) {
    if (target.data == nullptr) return;
    for (int at = 0; at < count; at += G::size) {
      G::store(target, first + at, count - at < G::size ? count - at : G::size, zero);
    }
  };
  fill(grad_prev);
  fill(to.grad_x);
  fill(to.grad_output);
  fill(to.grad_uncond);
  for (const Target& target : to.grad_history) fill(target);
  for (int column = 0; sums != nullptr && column < row_columns; ++column) sums[column] = 0;
}

template <class T>
void log_prob_backward(const gmm_log_prob_backward_arguments& b, int64_t first_tile, int64_t last_tile) {
  const int64_t elements = b.of.step.elements, tiles = tiles_of(elements);
  gmm_step_backward_arguments gradients = b.gradients;
  gradients.step = b.of.step;
  gradients.grad_result = gradients.grad_prediction = {};
  for (int64_t t = first_tile; t < last_tile;) {
    const int64_t sample = t / tiles;
    const SampleDensity<T> s = gather_density<T>(b.of, sample);
    Entries entries = {};
    entries.row = s.row_index;
    const SampleBackward<T> to = gather_backward<T>(gradients, sample, entries);
    const Target grad_prev = sample_of(b.grad_prev_sample, sample);
    for (; t < last_tile && t / tiles == sample; ++t) {
      const int64_t number = t - sample * tiles, first = number * tile;
      const int count = static_cast<int>(elements - first < tile ? elements - first : tile);
      const DensityGrad<T> g = gather_grad<T>(b, sample, number);
      T* sums = nullptr;
      if (gradients.grad_coefficients != nullptr) {
        sums = static_cast<T*>(gradients.workspace) + (sample * (tiles + 1) + number) * row_columns;
      }
      if (g.grad == 0) {
        write_no_gradients(to, grad_prev, first, count, sums);
      } else {
        log_prob_backward_tile(s, g, to, grad_prev, first, count, sums);
      }
    }
  }
}

template <class T>
void sum_weights(const gmm_log_prob_backward_arguments& b) {
  using L = typename OneLane<T>::Lanes;
  const int64_t components = b.of.step.mixture.components;
  T* table = static_cast<T*>(b.grad_weights);
  for (int64_t i = 0; i < b.of.weight_rows * components; ++i) table[i] = 0;
  for (int64_t sample = 0; sample < b.of.step.batch; ++sample) {
    const SampleDensity<T> s = gather_density<T>(b.of, sample);
    const DensityGrad<T> g = gather_grad<T>(b, sample);
    if (g.grad == 0) continue;
    T* entry = table + table_row(b.of.weight_rows, s.row_index) * components;
    for (int64_t k = 0; k < components; ++k) {
      entry[k] = L::add(entry[k], L::div(L::mul(g.grad, g.shares[k]), s.weights[k]));
    }
  }
}

// Offsets and std: the elements of groups first .. last - 1, for every entry.
template <class T>
void log_prob_scatter(const gmm_log_prob_backward_arguments& b, int64_t first_group, int64_t last_group) {
  using G = Group<T>;
  using L = typename G::L;
  using V = typename G::V;
  constexpr int n = G::n;
  const gmm_step_arguments& step = b.of.step;
  const gmm_mixture& m = step.mixture;
  T* offsets = static_cast<T*>(b.gradients.grad_offsets);
  T* stds = static_cast<T*>(b.gradients.grad_std);
  const int64_t begin = first_group * group;
  const int64_t end = last_group * group < step.elements ? last_group * group : step.elements;
  const int64_t std_end = stds == nullptr ? 0 : end < m.std_elements ? end : m.std_elements;
  if (offsets != nullptr) clear<T>(offsets, m.offset_rows * m.components, step.elements, begin, end - begin);
  if (begin < std_end) clear<T>(stds, m.std_rows * m.std_components, m.std_elements, begin, std_end - begin);
  V a, std, d, sum;
  for (int64_t sample = 0; sample < step.batch; ++sample) {
    const SampleDensity<T> s = gather_density<T>(b.of, sample);
    const DensityGrad<T> g = gather_grad<T>(b, sample);
    if (g.grad == 0) continue;
    T* offset_rows = offsets + (offsets == nullptr ? 0 : s.offsets - static_cast<const T*>(m.offsets));
    T* std_rows = stds + (stds == nullptr ? 0 : s.std - static_cast<const T*>(m.std));
    for (int64_t i = begin; i < end; i += G::size) {
      const int count = static_cast<int>(end - i < G::size ? end - i : G::size);
      const int std_count = static_cast<int>(std_end - i < count ? std_end - i : count);
      load_distance(s, i, count, a);
      for (int64_t k = 0; k < m.components; ++k) {
        const T part = OneLane<T>::Lanes::mul(g.grad, g.shares[k]);
        const T weight = OneLane<T>::Lanes::mul(part, s.row.offset);
        load_offset_from(s, k, i, count, a, d);
        if (k == 0 || s.std_components > 1) load_inverse_std(s, k, i, count, std);
        DensityUnits<L> units[n];
        for (int v = 0; v < n; ++v) units[v] = density_units<L>(d[v], std[v]);
        if (offsets != nullptr) {
          T* entry = offset_rows + k * step.elements;
          G::load({entry, table_dtype<T>}, i, count, sum);
          for (int v = 0; v < n; ++v) sum[v] = L::fma(L::splat(weight), units[v].mean, sum[v]);
          G::store({entry, table_dtype<T>}, i, count, sum);
        }
        if (std_count > 0) {
          T* entry = std_rows + (s.std_components == 1 ? 0 : k) * m.std_elements;
          G::load({entry, table_dtype<T>}, i, std_count, sum);
          for (int v = 0; v < n; ++v) sum[v] = L::fma(L::splat(part), units[v].std, sum[v]);
          G::store({entry, table_dtype<T>}, i, std_count, sum);
        }
      }
    }
  }
}

}  // namespace
}  // namespace gmmkernel
