// csrc/core/ by itself: conversions of the 16-bit formats, and the elementary functions, against their definitions.
#include "../../csrc/core/logits_loss.h"
#include "check.h"

namespace checks {

namespace {

// The value of a 16-bit format with `exponent_bits` bits of exponent, by the definition of IEEE 754.
double value_of(uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return mantissa != 0 ? NAN : sign * INFINITY;
  const double fraction = std::ldexp(mantissa, -mantissa_bits) + (exponent != 0);
  return sign * std::ldexp(fraction, std::max(exponent, 1) - bias);
}

template <class T>
void check_conversions(int exponent_bits) {
  const auto rounded = [](float value) {
    T stored;
    fastgan::store(&stored, value);
    return stored.bits;
  };
  const std::string about = name_of<T>();
  for (int bits = 0; bits < 0x10000; ++bits) {
    const T element{uint16_t(bits)};
    const double exact = value_of(element.bits, exponent_bits);
    const float loaded = fastgan::load(&element);
    expect(std::isnan(exact) ? std::isnan(loaded) : loaded == exact, about + " is read as its value");
    expect(std::isnan(exact) ? std::isnan(value_of(rounded(loaded), exponent_bits)) : rounded(loaded) == bits,
           about + " is written as it was read");
    if (!std::isfinite(exact) || (bits & 0x7fff) == 0 || !std::isfinite(value_of(element.bits + 1, exponent_bits)))
      continue;
    // Between two neighbours: to the nearer, and from the middle to the even one.
    const double next = value_of(element.bits + 1, exponent_bits), middle = (exact + next) / 2;
    const float low = std::nextafter(float(middle), float(exact)), high = std::nextafter(float(middle), float(next));
    expect(rounded(low) == bits && rounded(high) == bits + 1, about + " rounds to the nearest");
    expect(rounded(float(middle)) == (bits % 2 == 0 ? bits : bits + 1), about + " rounds ties to even");
  }
  expect(value_of(rounded(3e38f), exponent_bits) == (exponent_bits == 8 ? value_of(rounded(3e38f), 8) : INFINITY),
         about + " overflows to infinity");
  expect(value_of(rounded(INFINITY), exponent_bits) == INFINITY && std::isnan(value_of(rounded(NAN), exponent_bits)),
         about + " keeps infinity and NaN");
}

template <class C>
void check_functions() {
  const double relative = sizeof(C) == 8 ? 1e-14 : 4e-7;
  const auto near = [&](double value, double exact, const char* what, double x) {
    const bool same = std::isnan(exact) ? std::isnan(value) : value == exact;
    expect(same || std::fabs(value - exact) <= relative * std::fabs(exact) + 1e-44,
           std::string(what) + " of " + std::to_string(x) + " is " + std::to_string(value) + ", not " +
               std::to_string(exact));
  };
  std::vector<C> points = {C(0), C(INFINITY), C(-INFINITY), C(NAN), C(1e4), C(-1e4)};
  for (double x = -110; x <= 100; x += 0.0937) points.push_back(C(x));
  for (double x = -2; x <= 2; x += 0.0013) points.push_back(C(x));
  for (const C x : points) {
    const double d = x;
    const auto exp = [](double v) {
      return sizeof(C) == 8 || v < 88.7 || std::isnan(v) ? std::exp(v) : double(INFINITY);
    };
    near(fastgan::exp_(x), exp(d), "exp", d);
    if (d <= 0 || std::isnan(d)) near(fastgan::expm1_(x), std::expm1(d), "expm1", d);
    if (d >= 0 && d <= 1) near(fastgan::log1p_unit(x), std::log1p(d), "log1p", d);
    near(fastgan::tanh_(x), std::tanh(d), "tanh", d);
    near(fastgan::erf_(x), std::erf(d), "erf", d);
    near(fastgan::abs_(x), std::fabs(d), "abs", d);
    if (d > -80 && d < 80) {
      near(fastgan::sigmoid_(x), 1 / (1 + std::exp(-d)), "sigmoid", d);
      near(fastgan::softplus_(x), d > 0 ? d + std::log1p(std::exp(-d)) : std::log1p(std::exp(d)), "softplus", d);
    }
  }
  expect(std::isfinite(fastgan::logits_loss(C(1e4), C(0)).loss), "losses are finite");
}

}  // namespace

void check_core() {
  check_conversions<fastgan::bfloat16>(8);
  check_conversions<fastgan::float16>(5);
  check_functions<float>();
  check_functions<double>();
  for (int a = 0; a < fastgan::activation_count; ++a) {
    const fastgan::ActivationArguments act{fastgan::Activation(a), 0.2};
    for (double z = -30; z <= 30; z += 0.37) {  // not at zero, where some have a kink
      const double h = 1e-5, saved = saves_output(act) ? apply(act, z) : z;
      expect_close(derivative(act, saved, 1), (apply(act, z + h) - apply(act, z - h)) / (2 * h), 1, 1e-6,
                   std::string("derivative of ") + fastgan::activation_names[a] + " at " + std::to_string(z));
      const auto first = [&](double at) { return derivative(act, saves_output(act) ? apply(act, at) : at, 1); };
      expect_close(derivative(act, saved, 2), (first(z + h) - first(z - h)) / (2 * h), 1, 1e-6,
                   std::string("second derivative of ") + fastgan::activation_names[a] + " at " + std::to_string(z));
    }
  }
  expect(!fastgan::saves_output({fastgan::Activation::leaky_relu, -0.5}), "a negative slope needs z");
  expect(fastgan::is_piecewise_linear(fastgan::Activation::relu) &&
             !fastgan::is_piecewise_linear(fastgan::Activation::tanh),
         "which activations are piecewise linear");
}

}  // namespace checks
