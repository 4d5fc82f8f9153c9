// Noise added to training samples, and the training loss with its gradients. Everything goes tile by tile: noise for a
// tile, then the tile, so that each of the loops keeps its own constants in registers.

namespace gmmkernel {
namespace {

// What training needs of one sample.
template <class T>
struct SampleTraining {
  TrainingRow<T> row;
  PhiloxKeys keys;
  uint32_t step;
  uint64_t first_element;
};

template <class T>
GMM_INLINE SampleTraining<T> gather_training(const gmm_training& a, int64_t sample) {
  return {static_cast<const TrainingRow<T>*>(a.coefficients)[index_at(a.row, sample)],
          philox_keys(static_cast<uint64_t>(a.seeds[sample])), static_cast<uint32_t>(index_at(a.step, sample)), 0};
}

// The noise of a tile's elements, and where it begins; `reads`, if it has data, is asked for meanwhile.
template <class T>
const float* draw_tile(const SampleTraining<T>& s, Stream stream, int64_t first, int count, const Source& reads,
                       float (&room)[noise_room]) {
  return draw_noise(s.keys, s.first_element + first, count, s.step, stream, room,
                    [&](int64_t at) { prefetch(reads.data, reads.dtype, first + at); });
}

// Call body(s, sample, number, first, count) for tiles first_tile .. last_tile - 1, counted over all samples.
template <class T, class Body>
GMM_INLINE void for_tiles(const gmm_training& a, int64_t first_tile, int64_t last_tile, Body body) {
  const int64_t tiles = tiles_of(a.elements);
  for (int64_t t = first_tile; t < last_tile;) {
    const int64_t sample = t / tiles;
    const SampleTraining<T> s = gather_training<T>(a, sample);
    for (; t < last_tile && t / tiles == sample; ++t) {
      const int64_t number = t - sample * tiles, first = number * tile;
      body(s, sample, number, first, static_cast<int>(a.elements - first < tile ? a.elements - first : tile));
    }
  }
}

template <class T>
void add_noise(const gmm_add_noise_arguments& a, int64_t first_tile, int64_t last_tile) {
  using G = Group<T>;
  const auto body = [&](SampleTraining<T> s, int64_t sample, int64_t, int64_t first, int count) {
    s.first_element = static_cast<uint64_t>(index_at(a.first_element, sample));
    const Source x0 = sample_of(a.sample, sample);
    const Target result = sample_of(a.result, sample), noise = sample_of(a.noise, sample);
    float room[noise_room];
    const float* e1 = draw_tile(s, Stream::training, first, count, x0, room);
    typename G::V x, e;
    for (int at = 0; at < count; at += G::size) {
      const int left = count - at < G::size ? count - at : G::size;
      G::load(x0, first + at, left, x);
      G::load_noise(e1 + at, e);
      for (int v = 0; v < G::n; ++v) x[v] = noised<typename G::L>(s.row, x[v], e[v]);
      G::store(result, first + at, left, x);
      if (noise.data != nullptr) G::store(noise, first + at, left, e);
    }
  };
  for_tiles<T>(a.training, first_tile, last_tile, body);
}

// The noise that one tile's loss is made of.
struct TileNoise {
  const float *own, *fresh;
  float own_room[noise_room], fresh_room[noise_room];
};

template <class T>
GMM_INLINE void draw_targets(const SampleTraining<T>& s, int64_t first, int count, const Source& output,
                             TileNoise& noise) {
  noise.own = draw_tile(s, Stream::training, first, count, output, noise.own_room);
  if (s.row.draws_fresh()) noise.fresh = draw_tile(s, Stream::training_skip, first, count, {}, noise.fresh_room);
}

// How far the group from element `at` of a tile is off its targets.
template <class T>
struct GroupResiduals {
  typename Group<T>::V own, skip;
};

template <class T>
GMM_INLINE void find_residuals(const TrainingRow<T>& row, const Source& output, const Source& x, const TileNoise& noise,
                               int64_t first, int at, int left, GroupResiduals<T>& r) {
  using G = Group<T>;
  using L = typename G::L;
  typename G::V epsilon, other;
  G::load(output, first + at, left, epsilon);
  for (int v = 0; v < G::n; ++v) epsilon[v] = noise_of_output<L>(row, epsilon[v]);
  if (row.reads_sample()) {
    G::load(x, first + at, left, other);
    for (int v = 0; v < G::n; ++v) epsilon[v] = add_noise_of_sample<L>(row, other[v], epsilon[v]);
  }
  G::load_noise(noise.own + at, other);
  for (int v = 0; v < G::n; ++v) r.own[v] = L::sub(other[v], epsilon[v]);
  for (int v = 0; v < G::n; ++v) r.skip[v] = L::splat(0);
  if (!row.skips()) return;
  for (int v = 0; v < G::n; ++v) r.skip[v] = skip_target<L>(row, other[v]);
  if (row.draws_fresh()) {
    G::load_noise(noise.fresh + at, other);
    for (int v = 0; v < G::n; ++v) r.skip[v] = add_fresh_noise<L>(row, other[v], r.skip[v]);
  }
  for (int v = 0; v < G::n; ++v) r.skip[v] = skip_residual<L>(row, r.skip[v], epsilon[v]);
}

template <class T>
GMM_INLINE void find_weighted_residual(const TrainingRow<T>& row, const GroupResiduals<T>& r,
                                       typename Group<T>::V& residual) {
  using L = typename Group<T>::L;
  for (int v = 0; v < Group<T>::n; ++v) residual[v] = weighted_own<L>(row, r.own[v]);
  if (!row.skips()) return;
  for (int v = 0; v < Group<T>::n; ++v) residual[v] = add_weighted_skip<L>(row, r.skip[v], residual[v]);
}

template <class T>
void skip_loss_tiles(const gmm_skip_loss_arguments& a, int64_t first_tile, int64_t last_tile) {
  using G = Group<T>;
  using L = typename G::L;
  const int64_t entries = tiles_of(a.training.elements) + 1;
  const auto body = [&](const SampleTraining<T>& s, int64_t sample, int64_t number, int64_t first, int count) {
    const Source output = sample_of(a.model_output, sample), x = sample_of(a.sample, sample);
    TileNoise noise;
    draw_targets(s, first, count, output, noise);
    const Target residual = sample_of(a.residual, sample);
    T terms[tile];
    GroupResiduals<T> r;
    typename G::V term;
    for (int at = 0; at < count; at += G::size) {
      const int left = count - at < G::size ? count - at : G::size;
      find_residuals(s.row, output, x, noise, first, at, left, r);
      if (residual.data != nullptr) {
        find_weighted_residual(s.row, r, term);
        G::store(residual, first + at, left, term);
      }
      for (int v = 0; v < G::n; ++v) term[v] = own_term<L>(s.row, r.own[v]);
      if (s.row.skips()) {
        for (int v = 0; v < G::n; ++v) term[v] = add_skip_term<L>(s.row, r.skip[v], term[v]);
      }
      G::store_terms(terms + at, term);
    }
    for (int at = count; at < tile; ++at) terms[at] = 0;
    static_cast<T*>(a.workspace)[sample * entries + number] = sum_tile(terms);
  };
  for_tiles<T>(a.training, first_tile, last_tile, body);
}

// From the tiles' sums to the losses.
template <class T>
void skip_loss_samples(const gmm_skip_loss_arguments& a) {
  const int64_t elements = a.training.elements, tiles = tiles_of(elements);
  for (int64_t sample = 0; sample < a.training.batch; ++sample) {
    T* partial = static_cast<T*>(a.workspace) + sample * (tiles + 1);
    static_cast<T*>(a.loss)[sample] = sum_level(partial, tiles, 1) / static_cast<T>(elements);
  }
}

template <class T>
void scale_residual(const gmm_scale_residual_arguments& a, int64_t first_tile, int64_t last_tile) {
  const int64_t elements = a.training.elements, tiles = tiles_of(elements);
  for (int64_t t = first_tile; t < last_tile; ++t) {
    const int64_t sample = t / tiles, first = (t - sample * tiles) * tile;
    const auto& row = static_cast<const TrainingRow<T>*>(a.training.coefficients)[index_at(a.training.row, sample)];
    const T scale = residual_scale(static_cast<const T*>(a.grad_loss)[sample], elements) * row.eps_output;
    T* residual = static_cast<T*>(sample_of(a.residual, sample).data);
    const int64_t end = elements - first < tile ? elements : first + tile;
    for (int64_t i = first; i < end; ++i) residual[i] = scale * residual[i];
  }
}

template <class T>
void skip_loss_backward(const gmm_skip_loss_backward_arguments& b, int64_t first_tile, int64_t last_tile) {
  using G = Group<T>;
  using L = typename G::L;
  const auto body = [&](const SampleTraining<T>& s, int64_t sample, int64_t, int64_t first, int count) {
    const Source output = sample_of(b.of.model_output, sample), x = sample_of(b.of.sample, sample);
    const Target grad_output = sample_of(b.grad_model_output, sample), grad_x = sample_of(b.grad_sample, sample);
    const T scale = residual_scale(static_cast<const T*>(b.grad_loss)[sample], b.of.training.elements);
    const T of_output = scale * s.row.eps_output, of_sample = scale * s.row.eps_sample;
    TileNoise noise;
    draw_targets(s, first, count, output, noise);
    GroupResiduals<T> r;
    typename G::V residual, value;
    for (int at = 0; at < count; at += G::size) {
      const int left = count - at < G::size ? count - at : G::size;
      find_residuals(s.row, output, x, noise, first, at, left, r);
      find_weighted_residual(s.row, r, residual);
      if (grad_output.data != nullptr) {
        for (int v = 0; v < G::n; ++v) value[v] = L::mul(L::splat(of_output), residual[v]);
        G::store(grad_output, first + at, left, value);
      }
      if (grad_x.data != nullptr) {
        for (int v = 0; v < G::n; ++v) value[v] = L::splat(0);
        if (s.row.reads_sample()) {
          for (int v = 0; v < G::n; ++v) value[v] = L::mul(L::splat(of_sample), residual[v]);
        }
        G::store(grad_x, first + at, left, value);
      }
    }
  };
  for_tiles<T>(b.of.training, first_tile, last_tile, body);
}

}  // namespace
}  // namespace gmmkernel
