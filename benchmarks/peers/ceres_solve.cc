// One workload through Ceres. usage: ceres_solve FOLDER NAME SOLVER THREADS ITERATIONS REPEATS
// SOLVER: snc (sparse normal Cholesky), ss, ds (sparse, dense Schur), dne (dense normal equations).
// Prints one line of JSON: median seconds of Solve (its preprocessing included) and the costs.
#include <ceres/ceres.h>

#include "residuals.h"

template <class F, int M, int... N>
ceres::CostFunction* differentiated(F residual) {
  return new ceres::AutoDiffCostFunction<F, M, N...>(new F(residual));
}

static void build(Arrays& w, Doubles& x, Doubles& r, ceres::Problem& problem) {
  auto add = [&](ceres::CostFunction* cost, auto*... blocks) {
    problem.AddResidualBlock(cost, nullptr, blocks...);
  };
  auto anchors = [&](double weight) {
    for (size_t i = 0; i < x.size(); i += 3)
      add(differentiated<Anchor, 3, 3>({weight, &w.p[i]}), &x[i]);
  };
  if (w.kind == '1') {
    for (size_t k = 0; k < w.L0.size(); k++)
      add(differentiated<Spring, 1, 3, 3>({w.L0[k]}), &x[3 * w.e[2 * k]], &x[3 * w.e[2 * k + 1]]);
    anchors(0.05);
  } else if (w.kind == '2') {
    for (size_t k = 0; k < w.de.size() / 2; k++) {
      int i = w.de[2 * k], j = w.de[2 * k + 1];
      add(differentiated<AsRigidAsPossible, 3, 3, 3, 3>({&w.q[3 * k]}), &x[3 * i], &x[3 * j],
          &r[3 * i]);
    }
    for (size_t k = 0; k < w.h.size(); k++)
      add(differentiated<Anchor, 3, 3>({10.0, &w.t[3 * k]}), &x[3 * w.h[k]]);
  } else if (w.kind == '3') {
    for (size_t k = 0; k < w.ci.size(); k++)
      add(differentiated<Reprojection, 2, 9, 3>({w.obs[2 * k], w.obs[2 * k + 1]}),
          &x[9 * w.ci[k]], &r[3 * w.pi[k]]);
  } else if (w.kind == '4') {
    for (size_t k = 0; k < w.L.size(); k++) {
      const int* h = &w.h[4 * k];
      add(differentiated<Bending, 1, 3, 3, 3, 3>({w.sw[k]}), &x[3 * h[0]], &x[3 * h[1]],
          &x[3 * h[2]], &x[3 * h[3]]);
      add(differentiated<EdgeStrain, 1, 3, 3>({1.0 / w.L[k]}), &x[3 * h[0]], &x[3 * h[1]]);
    }
    anchors(0.01);
  } else {
    for (size_t k = 0; k < w.t.size(); k++)
      add(differentiated<Curve, 1, 5>({w.t[k], w.y[k]}), &x[0]);
  }
}

int main(int count, char** argument) {
  if (count != 7) return std::fprintf(stderr, "see the head of ceres_solve.cc\n"), 2;
  const std::string name = argument[2], solver = argument[3];
  Arrays w(argument[1], name);
  std::vector<double> seconds;
  ceres::Solver::Summary summary;
  for (int repeat = 0; repeat < std::atoi(argument[6]); repeat++) {
    Doubles x = w.x0, r = w.r0;
    ceres::Problem::Options fast;
    fast.disable_all_safety_checks = true;
    ceres::Problem problem(fast);
    build(w, x, r, problem);
    ceres::Solver::Options options;
    options.num_threads = std::atoi(argument[4]);
    options.max_num_iterations = std::atoi(argument[5]);
    options.function_tolerance = 1e-8;
    options.gradient_tolerance = options.parameter_tolerance = 1e-300;
    options.logging_type = ceres::SILENT;
    options.linear_solver_type = solver == "snc"   ? ceres::SPARSE_NORMAL_CHOLESKY
                                 : solver == "ss"  ? ceres::SPARSE_SCHUR
                                 : solver == "ds"  ? ceres::DENSE_SCHUR
                                                   : ceres::DENSE_NORMAL_CHOLESKY;
    double began = now();
    ceres::Solve(options, &problem, &summary);
    seconds.push_back(now() - began);
  }
  std::printf(
      "{\"version\": \"%s\", \"seconds\": %.6f, \"iterations\": %d, \"initial\": %.12e, "
      "\"final\": %.12e}\n",
      CERES_VERSION_STRING, median(seconds), (int)summary.iterations.size() - 1,
      summary.initial_cost, summary.final_cost);
}
