// Residual and Jacobian alone: ceres::Jet in a bare OpenMP loop into arrays made once, no Problem.
// usage: jets_loop FOLDER NAME THREADS; prints one line of JSON: median seconds, and the cost.
#include <omp.h>

#include "residuals.h"

static Doubles residuals, jacobian;
static size_t rows, entries;

// `call(k, output, T())` evaluates element k over N parameters into M outputs.
template <int N, int M, class F>
void loop(int count, F call) {
  residuals.resize(std::max(residuals.size(), rows + (size_t)count * M));
  jacobian.resize(std::max(jacobian.size(), entries + (size_t)count * M * N));
  double *r = &residuals[rows], *j = &jacobian[entries];
#pragma omp parallel for schedule(static)
  for (int k = 0; k < count; k++) {
    using T = ceres::Jet<double, N>;
    T output[M];
    call(k, output, T());
    for (int m = 0; m < M; m++) {
      r[(size_t)k * M + m] = output[m].a;
      for (int n = 0; n < N; n++) j[((size_t)k * M + m) * N + n] = output[m].v[n];
    }
  }
  rows += (size_t)count * M;
  entries += (size_t)count * M * N;
}

// D numbers from `from`, as parameters number `first` and following.
template <class T, int D>
struct Block {
  T values[D];
  Block(const double* from, int first) {
    for (int i = 0; i < D; i++) values[i] = T(from[i], first + i);
  }
  operator const T*() const { return values; }
};

static void evaluate(Arrays& w) {
  const double *x = w.x0.data(), *r = w.r0.data();
  rows = entries = 0;
  auto anchors = [&](double weight) {
    loop<3, 3>(w.x0.size() / 3, [&](int k, auto* out, auto t) {
      Anchor{weight, &w.p[3 * k]}(Block<decltype(t), 3>(x + 3 * k, 0) + 0, out);
    });
  };
  if (w.kind == '1') {
    loop<6, 1>(w.L0.size(), [&](int k, auto* out, auto t) {
      using B = Block<decltype(t), 3>;
      Spring{w.L0[k]}(B(x + 3 * w.e[2 * k], 0) + 0, B(x + 3 * w.e[2 * k + 1], 3) + 0, out);
    });
    anchors(0.05);
  } else if (w.kind == '2') {
    loop<9, 3>(w.de.size() / 2, [&](int k, auto* out, auto t) {
      using B = Block<decltype(t), 3>;
      int i = w.de[2 * k], j = w.de[2 * k + 1];
      AsRigidAsPossible{&w.q[3 * k]}(B(x + 3 * i, 0) + 0, B(x + 3 * j, 3) + 0, B(r + 3 * i, 6) + 0,
                                     out);
    });
    loop<3, 3>(w.h.size(), [&](int k, auto* out, auto t) {
      Anchor{10.0, &w.t[3 * k]}(Block<decltype(t), 3>(x + 3 * w.h[k], 0) + 0, out);
    });
  } else if (w.kind == '3') {
    loop<12, 2>(w.ci.size(), [&](int k, auto* out, auto t) {
      using T = decltype(t);
      Reprojection{w.obs[2 * k], w.obs[2 * k + 1]}(Block<T, 9>(x + 9 * w.ci[k], 0) + 0,
                                                   Block<T, 3>(r + 3 * w.pi[k], 9) + 0, out);
    });
  } else if (w.kind == '4') {
    loop<12, 1>(w.L.size(), [&](int k, auto* out, auto t) {
      using B = Block<decltype(t), 3>;
      const int* h = &w.h[4 * k];
      Bending{w.sw[k]}(B(x + 3 * h[0], 0) + 0, B(x + 3 * h[1], 3) + 0, B(x + 3 * h[2], 6) + 0,
                       B(x + 3 * h[3], 9) + 0, out);
    });
    loop<6, 1>(w.L.size(), [&](int k, auto* out, auto t) {
      using B = Block<decltype(t), 3>;
      const int* h = &w.h[4 * k];
      EdgeStrain{1.0 / w.L[k]}(B(x + 3 * h[0], 0) + 0, B(x + 3 * h[1], 3) + 0, out);
    });
    anchors(0.01);
  } else {
    loop<5, 1>(w.t.size(), [&](int k, auto* out, auto t) {
      Curve{w.t[k], w.y[k]}(Block<decltype(t), 5>(x, 0) + 0, out);
    });
  }
}

int main(int count, char** argument) {
  if (count != 4) return std::fprintf(stderr, "see the head of jets_loop.cc\n"), 2;
  omp_set_num_threads(std::atoi(argument[3]));
  Arrays w(argument[1], argument[2]);
  std::vector<double> seconds;
  for (int repeat = 0; repeat < 21; repeat++) {
    double began = now();
    evaluate(w);
    if (repeat) seconds.push_back(now() - began);
  }
  double cost = 0.0;
  for (double value : residuals) cost += 0.5 * value * value;
  std::printf("{\"seconds\": %.7f, \"cost\": %.12e}\n", median(seconds), cost);
}
