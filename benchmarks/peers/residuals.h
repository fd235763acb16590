// Residuals of the workloads W1r to W5 for Ceres' automatic differentiation, and arrays on disk.
#pragma once
#include <ceres/jet.h>
#include <ceres/rotation.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

using Doubles = std::vector<double>;
using Ints = std::vector<int>;

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Raw numbers of a file, in the machine's byte order.
template <class T>
std::vector<T> read_array(const std::string& path) {
  FILE* file = std::fopen(path.c_str(), "rb");
  if (!file) {
    std::fprintf(stderr, "cannot open %s\n", path.c_str());
    std::exit(1);
  }
  std::vector<T> values;
  T buffer[4096];
  while (size_t count = std::fread(buffer, sizeof(T), 4096, file))
    values.insert(values.end(), buffer, buffer + count);
  std::fclose(file);
  return values;
}

template <class T>
T dot3(const T* a, const T* b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

template <class T>
void cross3(const T* a, const T* b, T* out) {
  out[0] = a[1] * b[2] - a[2] * b[1];
  out[1] = a[2] * b[0] - a[0] * b[2];
  out[2] = a[0] * b[1] - a[1] * b[0];
}

template <class T>
T distance(const T* a, const T* b) {
  using std::sqrt;
  T d[3] = {b[0] - a[0], b[1] - a[1], b[2] - a[2]};
  return sqrt(dot3(d, d));
}

struct Spring {
  double rest;
  template <class T>
  bool operator()(const T* a, const T* b, T* r) const {
    r[0] = distance(a, b) - rest;
    return true;
  }
};

struct EdgeStrain {
  double inverse_length;
  template <class T>
  bool operator()(const T* a, const T* b, T* r) const {
    r[0] = distance(a, b) * inverse_length - 1.0;
    return true;
  }
};

struct Anchor {
  double weight;
  const double* target;
  template <class T>
  bool operator()(const T* a, T* r) const {
    for (int k = 0; k < 3; k++) r[k] = weight * (a[k] - target[k]);
    return true;
  }
};

struct AsRigidAsPossible {
  const double* rest;
  template <class T>
  bool operator()(const T* a, const T* b, const T* rotation, T* r) const {
    T edge[3] = {T(rest[0]), T(rest[1]), T(rest[2])}, turned[3];
    ceres::AngleAxisRotatePoint(rotation, edge, turned);
    for (int k = 0; k < 3; k++) r[k] = (b[k] - a[k]) - turned[k];
    return true;
  }
};

struct Reprojection {
  double u, v;
  template <class T>
  bool operator()(const T* camera, const T* point, T* r) const {
    T p[3];
    ceres::AngleAxisRotatePoint(camera, point, p);
    for (int k = 0; k < 3; k++) p[k] += camera[3 + k];
    T x = -p[0] / p[2], y = -p[1] / p[2], r2 = x * x + y * y;
    T scale = camera[6] * (1.0 + r2 * (camera[7] + camera[8] * r2));
    r[0] = scale * x - u;
    r[1] = scale * y - v;
    return true;
  }
};

struct Bending {
  double weight;
  template <class T>
  bool operator()(const T* a, const T* b, const T* c, const T* d, T* r) const {
    using std::atan2;
    using std::sqrt;
    T e[3], f[3], g[3], n1[3], n2[3], m[3];
    for (int k = 0; k < 3; k++) e[k] = b[k] - a[k], f[k] = c[k] - a[k], g[k] = d[k] - a[k];
    cross3(e, f, n1);
    cross3(g, e, n2);
    cross3(n1, n2, m);
    r[0] = weight * atan2(dot3(m, e) / sqrt(dot3(e, e)), dot3(n1, n2));
    return true;
  }
};

struct Curve {
  double t, y;
  template <class T>
  bool operator()(const T* h, T* r) const {
    using std::exp;
    using std::sin;
    r[0] = h[0] * exp(-h[1] * t) + h[2] * sin(h[3] * t) + h[4] - y;
    return true;
  }
};

// Arrays of one workload; what a workload does not have stays empty.
struct Arrays {
  Doubles p, L0, L, sw, q, t, x0, r0, obs, y;
  Ints e, de, h, ci, pi;
  char kind;
  Arrays(const std::string& folder, const std::string& name) : kind(name[1]) {
    auto real = [&](const char* key) { return read_array<double>(folder + "/" + key + ".f64"); };
    auto whole = [&](const char* key) { return read_array<int>(folder + "/" + key + ".i32"); };
    if (kind == '1') p = real("p"), L0 = real("L0"), x0 = real("x0"), e = whole("e");
    if (kind == '2')
      q = real("q"), t = real("t"), x0 = real("x0"), r0 = real("r0"), de = whole("de"),
      h = whole("h");
    if (kind == '3')
      obs = real("obs"), x0 = real("cam0"), r0 = real("X0"), ci = whole("ci"), pi = whole("pi");
    if (kind == '4')
      p = real("p"), L = real("L"), sw = real("sw"), x0 = real("x0"), h = whole("h");
    if (kind == '5') t = real("t"), y = real("y"), x0 = real("theta0");
  }
};
