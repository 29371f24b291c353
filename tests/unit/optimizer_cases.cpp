// SGD, Adam, AdamW, Lamb and Adafactor in f64.
#include "tests/unit/optimizer_cases.h"

#include "autograd/optim/adafactor.h"
#include "autograd/optim/adam.h"
#include "autograd/optim/lamb.h"
#include "autograd/optim/sgd.h"

namespace castor::autograd::test {
namespace {

ReferenceStep sgd_step(SGDConfig c) {
  return [c](Reference& r, Values g, int t) {
    Values& m = r.states["momentum_buffer"];
    m.resize(g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      double d = (c.maximize ? -g[i] : g[i]) + c.weight_decay * r.p[i];
      if (c.momentum != 0) {
        m[i] = t == 1 ? d : c.momentum * m[i] + (1 - c.dampening) * d;
        d = c.nesterov ? d + c.momentum * m[i] : m[i];
      }
      r.p[i] -= c.lr * d;
    }
  };
}

ReferenceStep adam_step(AdamConfig c, bool decoupled) {
  return [=](Reference& r, Values g, int t) {
    Values &m = r.states["exp_avg"], &v = r.states["exp_avg_sq"], &largest = r.states["max_exp_avg_sq"];
    m.resize(g.size());
    v.resize(g.size());
    largest.resize(g.size());
    const double correction1 = 1 - std::pow(c.betas[0], t), correction2 = 1 - std::pow(c.betas[1], t);
    for (std::size_t i = 0; i < g.size(); ++i) {
      double d = c.maximize ? -g[i] : g[i];
      if (decoupled) r.p[i] *= 1 - c.lr * c.weight_decay;
      if (!decoupled) d += c.weight_decay * r.p[i];
      m[i] = c.betas[0] * m[i] + (1 - c.betas[0]) * d;
      v[i] = c.betas[1] * v[i] + (1 - c.betas[1]) * d * d;
      largest[i] = std::max(largest[i], v[i]);
      const double second = c.amsgrad ? largest[i] : v[i];
      r.p[i] -= c.lr / correction1 * m[i] / (std::sqrt(second / correction2) + c.eps);
    }
  };
}

ReferenceStep lamb_step(LambConfig c) {
  return [c](Reference& r, Values g, int t) {
    Values &m = r.states["exp_avg"], &v = r.states["exp_avg_sq"];
    m.resize(g.size());
    v.resize(g.size());
    Values u(g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      m[i] = c.betas[0] * m[i] + (1 - c.betas[0]) * g[i];
      v[i] = c.betas[1] * v[i] + (1 - c.betas[1]) * g[i] * g[i];
      u[i] = m[i] / (std::sqrt(v[i]) + c.eps) + c.weight_decay * r.p[i];
    }
    double lr = c.lr;
    if (c.bias_correction) lr *= std::sqrt(1 - std::pow(c.betas[1], t)) / (1 - std::pow(c.betas[0], t));
    const double p_norm = std::sqrt(sum_of_squares(r.p)), u_norm = std::sqrt(sum_of_squares(u));
    const double ratio = c.adam || p_norm == 0 || u_norm == 0 ? 1 : p_norm / u_norm;
    for (std::size_t i = 0; i < g.size(); ++i) r.p[i] -= lr * ratio * u[i];
  };
}

ReferenceStep adafactor_step(AdafactorConfig c) {
  return [c](Reference& r, Values g, int t) {
    const bool is_factored = r.shape.ndim() >= 2;
    const auto columns = static_cast<std::size_t>(is_factored ? r.shape.back() : 1);
    const auto rows = static_cast<std::size_t>(is_factored ? r.shape[r.shape.ndim() - 2] : 1);
    const std::size_t matrices = g.size() / (rows * columns);
    double rate = c.lr.value_or(0);
    if (c.relative_step) rate = std::min(c.warmup_init ? 1e-6 * t : 1e-2, 1 / std::sqrt(static_cast<double>(t)));
    if (c.scale_parameter) rate *= std::max(c.eps[1], root_mean_square(r.p));
    const double beta2 = 1 - std::pow(t, c.decay_rate);
    Values u(g.size());
    if (is_factored) {
      Values &row = r.states["exp_avg_sq_row"], &column = r.states["exp_avg_sq_col"];
      row.resize(matrices * rows);
      column.resize(matrices * columns);
      for (std::size_t b = 0; b < matrices; ++b) {
        Values row_mean(rows), column_mean(columns);
        for (std::size_t i = 0; i < rows; ++i) {
          for (std::size_t j = 0; j < columns; ++j) {
            const double x = g[(b * rows + i) * columns + j];
            row_mean[i] += (x * x + c.eps[0]) / static_cast<double>(columns);
            column_mean[j] += (x * x + c.eps[0]) / static_cast<double>(rows);
          }
        }
        double all = 0;
        for (std::size_t i = 0; i < rows; ++i) {
          double& state = row[b * rows + i];
          state = beta2 * state + (1 - beta2) * row_mean[i];
          all += state / static_cast<double>(rows);
        }
        for (std::size_t j = 0; j < columns; ++j) {
          double& state = column[b * columns + j];
          state = beta2 * state + (1 - beta2) * column_mean[j];
        }
        for (std::size_t i = 0; i < rows; ++i) {
          for (std::size_t j = 0; j < columns; ++j) {
            const std::size_t at = (b * rows + i) * columns + j;
            u[at] = g[at] / std::sqrt(row[b * rows + i] / all) / std::sqrt(column[b * columns + j]);
          }
        }
      }
    } else {
      Values& v = r.states["exp_avg_sq"];
      v.resize(g.size());
      for (std::size_t i = 0; i < g.size(); ++i) {
        v[i] = beta2 * v[i] + (1 - beta2) * (g[i] * g[i] + c.eps[0]);
        u[i] = g[i] / std::sqrt(v[i]);
      }
    }
    const double shrink = std::max(1.0, root_mean_square(u) / c.clip_threshold);
    Values& m = r.states["exp_avg"];
    m.resize(g.size());
    for (std::size_t i = 0; i < g.size(); ++i) {
      double update = rate * u[i] / shrink;
      if (c.beta1) update = m[i] = *c.beta1 * m[i] + (1 - *c.beta1) * update;
      r.p[i] -= c.weight_decay * rate * r.p[i];
      r.p[i] -= update;
    }
  };
}

}  // namespace

void add_first_cases(std::vector<OptimizerCase>& cases) {
  const auto sgd = [&](const std::string& name, const std::function<void(SGDConfig&)>& set) {
    SGDConfig c;
    c.lr = 0.1;
    set(c);
    cases.push_back(row<SGD>("SGD " + name, c, sgd_step(c)));
  };
  sgd("plain", [](SGDConfig&) {});
  sgd("decay", [](SGDConfig& c) { c.weight_decay = 0.1; });
  sgd("momentum, dampening, decay", [](SGDConfig& c) { c.momentum = 0.9, c.dampening = 0.3, c.weight_decay = 0.01; });
  sgd("nesterov, maximize", [](SGDConfig& c) { c.momentum = 0.8, c.nesterov = true, c.maximize = true; });

  AdamConfig adam;
  adam.lr = 0.01;
  cases.push_back(row<Adam>("Adam", adam, adam_step(adam, false)));
  adam.weight_decay = 0.1;
  adam.betas = {0.8, 0.95};
  adam.amsgrad = true;
  cases.push_back(row<Adam>("Adam decay, amsgrad", adam, adam_step(adam, false)));
  AdamWConfig adamw;
  adamw.lr = 0.01;
  cases.push_back(row<AdamW>("AdamW", adamw, adam_step(adamw, true)));
  adamw.maximize = true;
  adamw.weight_decay = 0.3;
  cases.push_back(row<AdamW>("AdamW maximize", adamw, adam_step(adamw, true)));

  LambConfig lamb;
  lamb.lr = 0.01;
  cases.push_back(row<Lamb>("Lamb", lamb, lamb_step(lamb)));
  lamb.weight_decay = 0.1;
  lamb.bias_correction = true;
  cases.push_back(row<Lamb>("Lamb decay, bias correction", lamb, lamb_step(lamb)));
  lamb.adam = true;
  cases.push_back(row<Lamb>("Lamb adam", lamb, lamb_step(lamb)));

  AdafactorConfig adafactor;
  cases.push_back(row<Adafactor>("Adafactor", adafactor, adafactor_step(adafactor)));
  adafactor.warmup_init = true;
  adafactor.weight_decay = 0.1;
  cases.push_back(row<Adafactor>("Adafactor warm-up, decay", adafactor, adafactor_step(adafactor)));
  adafactor = {};
  adafactor.lr = 0.05;
  adafactor.relative_step = false;
  adafactor.scale_parameter = false;
  adafactor.beta1 = 0.9;
  adafactor.clip_threshold = 0.5;
  cases.push_back(row<Adafactor>("Adafactor beta1, clipped", adafactor, adafactor_step(adafactor)));
}

}  // namespace castor::autograd::test
