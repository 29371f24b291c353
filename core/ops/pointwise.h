// Pointwise maths, written once: each functor holds an op's value and its derivative, and both compilers read it. The
// kernels go through `visit_unary` and `visit_binary`, so adding an op edits this file and no kernel.
//
// Functors compute in T = float (for f32, f16, bf16) or double. `a` and `b` are the op's scalar parameters.
#pragma once

#include "core/base/math.h"

namespace castor {

/// Unary ops. In brackets, the meaning of the scalar parameters a and b.
enum class UnaryOp : std::uint8_t {
  affine,  ///< a x + b
  clamp,   ///< x limited to [a, b]
  pow,     ///< x^a
  abs,
  exp,
  log,
  sqrt,
  rsqrt,
  reciprocal,
  square,
  erf,
  tanh,
  sigmoid,
  relu,
  gelu_erf,
  gelu_tanh,
  silu
};

/// Binary ops on operands of one dtype.
enum class BinaryOp : std::uint8_t { add, sub, mul, div, pow, maximum, minimum };

/// Comparisons; the result is bool.
enum class CompareOp : std::uint8_t { eq, ne, lt, le, gt, ge };

namespace pointwise {

// clang-format off
struct Affine     { template <class T> CASTOR_HOST_DEVICE static T value(T x, T a, T b) { return a * x + b; }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T, T, T a, T) { return a; } };
struct Clamp      { template <class T> CASTOR_HOST_DEVICE static T value(T x, T a, T b) { const T low = x < a ? a : x; return low > b ? b : low; }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T x, T, T a, T b) { return x >= a && x <= b ? T(1) : T(0); } };
struct PowScalar  { template <class T> CASTOR_HOST_DEVICE static T value(T x, T a, T) { return math::pow(x, a); }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T x, T, T a, T) { return a == T(0) ? T(0) : a * math::pow(x, a - T(1)); } };
struct Abs        { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return x < T(0) ? -x : x; }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T x, T, T, T) { return x > T(0) ? T(1) : x < T(0) ? T(-1) : T(0); } };
struct Exp        { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return math::exp(x); }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T, T y, T, T) { return y; } };
struct Log        { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return math::log(x); }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T x, T, T, T) { return T(1) / x; } };
struct Sqrt       { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return math::sqrt(x); }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T, T y, T, T) { return T(0.5) / y; } };
struct Rsqrt      { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return T(1) / math::sqrt(x); }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T, T y, T, T) { return T(-0.5) * y * y * y; } };
struct Reciprocal { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return T(1) / x; }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T, T y, T, T) { return -(y * y); } };
struct Square     { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return x * x; }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T x, T, T, T) { return x + x; } };
struct Erf        { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return math::erf(x); }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T x, T, T, T) { return T(1.1283791670955126) * math::exp(-(x * x)); } };
struct Tanh       { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return math::tanh(x); }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T, T y, T, T) { return T(1) - y * y; } };
struct Sigmoid    { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return math::sigmoid(x); }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T, T y, T, T) { return y * (T(1) - y); } };
struct Relu       { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return x < T(0) ? T(0) : x; }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T x, T, T, T) { return x > T(0) ? T(1) : T(0); } };
struct Silu       { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return x * math::sigmoid(x); }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T x, T, T, T) {
                      const T s = math::sigmoid(x); return s * (T(1) + x * (T(1) - s)); } };
/// x Phi(x). Source: Hendrycks & Gimpel 2016, arXiv:1606.08415.
struct GeluErf    { template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) {
                      return T(0.5) * x * (T(1) + math::erf(x * T(0.70710678118654752))); }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T x, T, T, T) {
                      const T cdf = T(0.5) * (T(1) + math::erf(x * T(0.70710678118654752)));
                      return cdf + x * (T(0.39894228040143268) * math::exp(T(-0.5) * x * x)); } };
/// The tanh form of the same paper, section 2. tanh(u) = 1 - 2 / (e^2u + 1) costs one exponential; its absolute error is what matters here.
struct GeluTanh   { template <class T> CASTOR_HOST_DEVICE static T tanh_inner(T x) {
                      const T u = T(0.79788456080286536) * (x + T(0.044715) * x * x * x);
                      return T(1) - T(2) / (math::exp(u + u) + T(1)); }
                    template <class T> CASTOR_HOST_DEVICE static T value(T x, T, T) { return T(0.5) * x * (T(1) + tanh_inner(x)); }
                    template <class T> CASTOR_HOST_DEVICE static T slope(T x, T, T, T) {
                      const T t = tanh_inner(x);
                      const T du = T(0.79788456080286536) * (T(1) + T(0.134145) * x * x);
                      return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * du; } };

struct Add     { template <class T> CASTOR_HOST_DEVICE static T value(T x, T y) { return x + y; } };
struct Sub     { template <class T> CASTOR_HOST_DEVICE static T value(T x, T y) { return x - y; } };
struct Mul     { template <class T> CASTOR_HOST_DEVICE static T value(T x, T y) { return x * y; } };
struct Div     { template <class T> CASTOR_HOST_DEVICE static T value(T x, T y) { return x / y; } };
struct Pow     { template <class T> CASTOR_HOST_DEVICE static T value(T x, T y) { return static_cast<T>(math::pow(x, y)); } };
struct Maximum { template <class T> CASTOR_HOST_DEVICE static T value(T x, T y) { return x < y ? y : x; } };
struct Minimum { template <class T> CASTOR_HOST_DEVICE static T value(T x, T y) { return y < x ? y : x; } };

struct Eq { template <class T> CASTOR_HOST_DEVICE static bool value(T x, T y) { return x == y; } };
struct Ne { template <class T> CASTOR_HOST_DEVICE static bool value(T x, T y) { return x != y; } };
struct Lt { template <class T> CASTOR_HOST_DEVICE static bool value(T x, T y) { return x < y; } };
struct Le { template <class T> CASTOR_HOST_DEVICE static bool value(T x, T y) { return x <= y; } };
struct Gt { template <class T> CASTOR_HOST_DEVICE static bool value(T x, T y) { return x > y; } };
struct Ge { template <class T> CASTOR_HOST_DEVICE static bool value(T x, T y) { return x >= y; } };
// clang-format on

}  // namespace pointwise

/// Calls f with the functor of `op`.
template <class F>
decltype(auto) visit_unary(UnaryOp op, F&& f) {
  switch (op) {
    case UnaryOp::affine:
      return f(pointwise::Affine{});
    case UnaryOp::clamp:
      return f(pointwise::Clamp{});
    case UnaryOp::pow:
      return f(pointwise::PowScalar{});
    case UnaryOp::abs:
      return f(pointwise::Abs{});
    case UnaryOp::exp:
      return f(pointwise::Exp{});
    case UnaryOp::log:
      return f(pointwise::Log{});
    case UnaryOp::sqrt:
      return f(pointwise::Sqrt{});
    case UnaryOp::rsqrt:
      return f(pointwise::Rsqrt{});
    case UnaryOp::reciprocal:
      return f(pointwise::Reciprocal{});
    case UnaryOp::square:
      return f(pointwise::Square{});
    case UnaryOp::erf:
      return f(pointwise::Erf{});
    case UnaryOp::tanh:
      return f(pointwise::Tanh{});
    case UnaryOp::sigmoid:
      return f(pointwise::Sigmoid{});
    case UnaryOp::relu:
      return f(pointwise::Relu{});
    case UnaryOp::gelu_erf:
      return f(pointwise::GeluErf{});
    case UnaryOp::gelu_tanh:
      return f(pointwise::GeluTanh{});
    case UnaryOp::silu:
      return f(pointwise::Silu{});
  }
  throw InternalError("visit_unary: an op outside the enumeration");
}

/// Calls f with the functor of `op`.
template <class F>
decltype(auto) visit_binary(BinaryOp op, F&& f) {
  switch (op) {
    case BinaryOp::add:
      return f(pointwise::Add{});
    case BinaryOp::sub:
      return f(pointwise::Sub{});
    case BinaryOp::mul:
      return f(pointwise::Mul{});
    case BinaryOp::div:
      return f(pointwise::Div{});
    case BinaryOp::pow:
      return f(pointwise::Pow{});
    case BinaryOp::maximum:
      return f(pointwise::Maximum{});
    case BinaryOp::minimum:
      return f(pointwise::Minimum{});
  }
  throw InternalError("visit_binary: an op outside the enumeration");
}

/// Calls f with the functor of `op`.
template <class F>
decltype(auto) visit_compare(CompareOp op, F&& f) {
  switch (op) {
    case CompareOp::eq:
      return f(pointwise::Eq{});
    case CompareOp::ne:
      return f(pointwise::Ne{});
    case CompareOp::lt:
      return f(pointwise::Lt{});
    case CompareOp::le:
      return f(pointwise::Le{});
    case CompareOp::gt:
      return f(pointwise::Gt{});
    case CompareOp::ge:
      return f(pointwise::Ge{});
  }
  throw InternalError("visit_compare: an op outside the enumeration");
}

/// True where the derivative needs only the result (so the input need not be saved for backward).
constexpr bool slope_uses_output_only(UnaryOp op) {
  return op == UnaryOp::exp || op == UnaryOp::sqrt || op == UnaryOp::rsqrt || op == UnaryOp::reciprocal ||
         op == UnaryOp::tanh || op == UnaryOp::sigmoid;
}

}  // namespace castor
