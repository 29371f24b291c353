// The optimizers of ColossalAI, bitsandbytes and PyTorch beside the first five, in f64.
#include <algorithm>

#include "autograd/optim/adagrad.h"
#include "autograd/optim/adam.h"
#include "autograd/optim/adamw8bit.h"
#include "autograd/optim/came.h"
#include "autograd/optim/lamb.h"
#include "autograd/optim/lars.h"
#include "autograd/optim/lion.h"
#include "autograd/optim/rmsprop.h"
#include "autograd/optim/sgd.h"
#include "core/ops/dynamic_code.h"
#include "tests/unit/optimizer_cases.h"

namespace castor::autograd::test {
namespace {

Values& state(Reference& r, const char* name, std::size_t size, double initial = 0) {
  Values& values = r.states[name];
  values.resize(size, initial);
  return values;
}

ReferenceStep late_sgd_step(SGDConfig c) {
  return [c](Reference& r, Values g, int t) {
    Values& m = state(r, "momentum_buffer", g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      m[i] = t == 1 ? g[i] : c.momentum * m[i] + (1 - c.dampening) * g[i];
      r.p[i] -= c.lr * (m[i] + c.weight_decay * r.p[i]);
    }
  };
}

ReferenceStep plain_adam_step(HybridAdamConfig c) {
  return [c](Reference& r, Values g, int t) {
    Values &m = state(r, "exp_avg", g.size()), &v = state(r, "exp_avg_sq", g.size());
    const double correction1 = c.bias_correction ? 1 - std::pow(c.betas[0], t) : 1;
    const double correction2 = c.bias_correction ? 1 - std::pow(c.betas[1], t) : 1;
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double d = c.adamw_mode ? g[i] : g[i] + c.weight_decay * r.p[i];
      if (c.adamw_mode) r.p[i] *= 1 - c.lr * c.weight_decay;
      m[i] = c.betas[0] * m[i] + (1 - c.betas[0]) * d;
      v[i] = c.betas[1] * v[i] + (1 - c.betas[1]) * d * d;
      r.p[i] -= c.lr / correction1 * m[i] / (std::sqrt(v[i] / correction2) + c.eps);
    }
  };
}

/// Without its limit, which depends on other parameters (stepper_test.cpp).
ReferenceStep fused_lamb_step(FusedLAMBConfig c) {
  return [c](Reference& r, Values g, int t) {
    Values &m = state(r, "exp_avg", g.size()), &v = state(r, "exp_avg_sq", g.size());
    const double correction1 = c.bias_correction ? 1 - std::pow(c.betas[0], t) : 1;
    const double correction2 = c.bias_correction ? 1 - std::pow(c.betas[1], t) : 1;
    Values u(g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double d = c.adam_w_mode ? g[i] : g[i] + c.weight_decay * r.p[i];
      m[i] = c.betas[0] * m[i] + (c.grad_averaging ? 1 - c.betas[0] : 1) * d;
      v[i] = c.betas[1] * v[i] + (1 - c.betas[1]) * d * d;
      u[i] = m[i] / correction1 / (std::sqrt(v[i] / correction2) + c.eps);
      if (c.adam_w_mode) u[i] += c.weight_decay * r.p[i];
    }
    const double p_norm = std::sqrt(sum_of_squares(r.p)), u_norm = std::sqrt(sum_of_squares(u));
    const bool has_ratio = (c.use_nvlamb || c.weight_decay != 0) && p_norm > 0 && u_norm > 0;
    for (std::size_t i = 0; i < g.size(); ++i) r.p[i] -= c.lr * (has_ratio ? p_norm / u_norm : 1) * u[i];
  };
}

ReferenceStep lars_step(LarsConfig c) {
  return [c](Reference& r, Values g, int t) {
    Values& m = state(r, "momentum_buffer", g.size());
    const double p_norm = std::sqrt(sum_of_squares(r.p)), g_norm = std::sqrt(sum_of_squares(g));
    double ratio = 1;
    if (p_norm > 0 && g_norm > 0)
      ratio = std::min(c.eeta * p_norm / (g_norm + c.weight_decay * p_norm + c.epsilon), 50.0);
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double d = std::clamp(g[i] + c.weight_decay * r.p[i], -10.0, 10.0);
      m[i] = t == 1 || c.momentum == 0 ? d : c.momentum * m[i] + d;
      r.p[i] -= c.lr * ratio * m[i];
    }
  };
}

ReferenceStep adagrad_step(AdagradConfig c) {
  return [c](Reference& r, Values g, int t) {
    Values& sum = state(r, "sum", g.size(), c.initial_accumulator_value);
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double d = (c.maximize ? -g[i] : g[i]) + c.weight_decay * r.p[i];
      sum[i] += d * d;
      r.p[i] -= c.lr / (1 + (t - 1) * c.lr_decay) * d / (std::sqrt(sum[i]) + c.eps);
    }
  };
}

ReferenceStep rmsprop_step(RMSpropConfig c) {
  return [c](Reference& r, Values g, int) {
    Values &v = state(r, "square_avg", g.size()), &b = state(r, "momentum_buffer", g.size()),
           &a = state(r, "grad_avg", g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double d = (c.maximize ? -g[i] : g[i]) + c.weight_decay * r.p[i];
      v[i] = c.alpha * v[i] + (1 - c.alpha) * d * d;
      a[i] = c.alpha * a[i] + (1 - c.alpha) * d;
      const double u = d / (std::sqrt(c.centered ? std::max(0.0, v[i] - a[i] * a[i]) : v[i]) + c.eps);
      b[i] = c.momentum * b[i] + u;
      r.p[i] -= c.lr * (c.momentum == 0 ? u : b[i]);
    }
  };
}

ReferenceStep lion_step(LionConfig c) {
  return [c](Reference& r, Values g, int) {
    Values& m = state(r, "exp_avg", g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      const double direction = c.betas[0] * m[i] + (1 - c.betas[0]) * g[i];
      r.p[i] = (1 - c.lr * c.weight_decay) * r.p[i] - c.lr * (direction > 0 ? 1 : direction < 0 ? -1 : 0);
      m[i] = c.betas[1] * m[i] + (1 - c.betas[1]) * g[i];
    }
  };
}

/// A matrix's or a stack of matrices' two running means of squares.
struct Factored {
  std::size_t matrices, rows, columns;
  Values& row;
  Values& column;

  Factored(Reference& r, const char* row_name, const char* column_name)
      : matrices(1),
        rows(static_cast<std::size_t>(r.shape[r.shape.ndim() - 2])),
        columns(static_cast<std::size_t>(r.shape.back())),
        row(r.states[row_name]),
        column(r.states[column_name]) {
    matrices = r.p.size() / (rows * columns);
    row.resize(matrices * rows);
    column.resize(matrices * columns);
  }
  /// Adds x's squares and returns 1 / sqrt of each element's mean.
  Values update(const Values& x, double beta, double epsilon) {
    for (double& value : row) value *= beta;
    for (double& value : column) value *= beta;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double square = x[i] * x[i] + epsilon;
      row[i / columns] += (1 - beta) * square / static_cast<double>(columns);
      column[column_of(i)] += (1 - beta) * square / static_cast<double>(rows);
    }
    Values result(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      double mean = 0;
      const std::size_t first = i / (rows * columns) * rows;
      for (std::size_t k = first; k < first + rows; ++k) mean += row[k] / static_cast<double>(rows);
      result[i] = 1 / std::sqrt(row[i / columns] / mean * column[column_of(i)]);
    }
    return result;
  }
  std::size_t column_of(std::size_t i) const { return i / (rows * columns) * columns + i % columns; }
};

ReferenceStep came_step(CAMEConfig c) {
  return [c](Reference& r, Values g, int) {
    const bool is_factored = r.shape.ndim() >= 2;
    Values u(g.size()), off(g.size());
    if (is_factored) {
      u = Factored(r, "exp_avg_sq_row", "exp_avg_sq_col").update(g, c.betas[1], c.eps[0]);
      for (std::size_t i = 0; i < g.size(); ++i) u[i] *= g[i];
    } else {
      Values& v = state(r, "exp_avg_sq", g.size());
      for (std::size_t i = 0; i < g.size(); ++i) {
        v[i] = c.betas[1] * v[i] + (1 - c.betas[1]) * (g[i] * g[i] + c.eps[0]);
        u[i] = g[i] / std::sqrt(v[i]);
      }
    }
    const double shrink = std::max(1.0, root_mean_square(u) / c.clip_threshold);
    Values& m = state(r, "exp_avg", g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      m[i] = c.betas[0] * m[i] + (1 - c.betas[0]) * u[i] / shrink;
      off[i] = u[i] / shrink - m[i];
    }
    Values confidence(g.size(), 1.0);
    if (is_factored) confidence = Factored(r, "exp_avg_res_row", "exp_avg_res_col").update(off, c.betas[2], c.eps[1]);
    for (std::size_t i = 0; i < g.size(); ++i)
      r.p[i] = (1 - *c.lr * c.weight_decay) * r.p[i] - *c.lr * m[i] * confidence[i];
  };
}

/// Writes x in 8 bits and reads it back.
void round_to_code(bool is_signed, Values& x, Values& codes, Values& scales) {
  const DynamicCode code = make_dynamic_code(is_signed);
  constexpr auto kBlock = static_cast<std::size_t>(kBlockElements);
  codes.resize(x.size());
  scales.assign((x.size() + kBlock - 1) / kBlock, 0.0);
  for (std::size_t i = 0; i < x.size(); ++i) scales[i / kBlock] = std::max(scales[i / kBlock], std::abs(x[i]));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double scale = scales[i / kBlock];
    const std::uint8_t nearest = nearest_code(code.edge, static_cast<float>(scale > 0 ? x[i] / scale : 0));
    codes[i] = nearest;
    x[i] = static_cast<double>(code.value[nearest]) * scale;
  }
}

ReferenceStep adamw8bit_step(AdamW8bitConfig c) {
  return [c](Reference& r, Values g, int t) {
    const bool has_codes = static_cast<std::int64_t>(g.size()) >= c.min_8bit_size;
    // What the codes stand for is kept under names that no state has.
    Values& m = state(r, has_codes ? "mean" : "exp_avg", g.size());
    Values& v = state(r, has_codes ? "square" : "exp_avg_sq", g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      m[i] = c.betas[0] * m[i] + (1 - c.betas[0]) * g[i];
      v[i] = c.betas[1] * v[i] + (1 - c.betas[1]) * g[i] * g[i];
      r.p[i] *= 1 - c.lr * c.weight_decay;
      r.p[i] -= c.lr / (1 - std::pow(c.betas[0], t)) * m[i] / (std::sqrt(v[i] / (1 - std::pow(c.betas[1], t))) + c.eps);
    }
    if (!has_codes) return;
    round_to_code(true, m, r.states["exp_avg_code"], r.states["exp_avg_scale"]);
    round_to_code(false, v, r.states["exp_avg_sq_code"], r.states["exp_avg_sq_scale"]);
  };
}

}  // namespace

void add_peers_cases(std::vector<OptimizerCase>& cases) {
  SGDConfig sgd;
  sgd.lr = 0.1;
  sgd.momentum = 0.9;
  sgd.dampening = 0.2;
  sgd.weight_decay = 0.05;
  sgd.wd_after_momentum = true;
  cases.push_back(row<SGD>("FusedSGD", sgd, late_sgd_step(sgd)));

  HybridAdamConfig adam;
  adam.lr = 0.01;
  adam.weight_decay = 0.1;
  const auto hybrid = [&](const std::string& name) {
    cases.push_back({name, [adam] { return make_hybrid_adam(adam); }, plain_adam_step(adam)});
  };
  hybrid("HybridAdam");
  adam.adamw_mode = false;
  adam.bias_correction = false;
  hybrid("HybridAdam as Adam, not corrected");

  FusedLAMBConfig lamb;
  lamb.lr = 0.01;
  lamb.max_grad_norm = 0;
  cases.push_back(row<FusedLAMB>("FusedLAMB", lamb, fused_lamb_step(lamb)));
  lamb.weight_decay = 0.1;
  lamb.adam_w_mode = false;
  lamb.grad_averaging = false;
  lamb.bias_correction = false;
  cases.push_back(row<FusedLAMB>("FusedLAMB, decay in the gradient", lamb, fused_lamb_step(lamb)));
  lamb.weight_decay = 0;
  cases.push_back(row<FusedLAMB>("FusedLAMB without decay", lamb, fused_lamb_step(lamb)));
  lamb.use_nvlamb = true;
  cases.push_back(row<FusedLAMB>("FusedLAMB, nvlamb", lamb, fused_lamb_step(lamb)));

  LarsConfig lars;
  lars.lr = 10;
  cases.push_back(row<Lars>("Lars", lars, lars_step(lars)));
  lars.lr = 1;
  lars.momentum = 0.9;
  lars.eeta = 0.02;
  lars.weight_decay = 0.1;
  lars.epsilon = 0.01;
  cases.push_back(row<Lars>("Lars momentum, decay", lars, lars_step(lars)));

  CAMEConfig came;
  came.lr = 1e-3;
  cases.push_back(row<CAME>("CAME", came, came_step(came)));
  came.betas = {0.8, 0.95, 0.99};
  came.eps = {1e-20, 1e-6};
  came.clip_threshold = 0.5;
  came.weight_decay = 0.1;
  cases.push_back(row<CAME>("CAME clipped, decay", came, came_step(came)));

  AdagradConfig adagrad;
  adagrad.lr = 0.1;
  cases.push_back(row<Adagrad>("Adagrad", adagrad, adagrad_step(adagrad)));
  adagrad.lr_decay = 0.2;
  adagrad.weight_decay = 0.1;
  adagrad.initial_accumulator_value = 0.5;
  adagrad.maximize = true;
  cases.push_back(row<Adagrad>("Adagrad decays, maximize", adagrad, adagrad_step(adagrad)));

  RMSpropConfig rmsprop;
  rmsprop.eps = 1e-3;
  cases.push_back(row<RMSprop>("RMSprop", rmsprop, rmsprop_step(rmsprop)));
  rmsprop.momentum = 0.8;
  rmsprop.eps = 1;
  rmsprop.weight_decay = 0.05;
  cases.push_back(row<RMSprop>("RMSprop momentum, decay", rmsprop, rmsprop_step(rmsprop)));
  rmsprop.centered = true;
  rmsprop.maximize = true;
  rmsprop.alpha = 0.8;
  cases.push_back(row<RMSprop>("RMSprop centered, maximize", rmsprop, rmsprop_step(rmsprop)));

  LionConfig lion;
  lion.lr = 0.01;
  lion.weight_decay = 0.1;
  cases.push_back(row<Lion>("Lion", lion, lion_step(lion)));

  AdamW8bitConfig adam8bit;
  adam8bit.lr = 0.01;
  adam8bit.min_8bit_size = 2000;  // some of the parameters
  cases.push_back(row<AdamW8bit>("AdamW8bit", adam8bit, adamw8bit_step(adam8bit)));
}

}  // namespace castor::autograd::test
