// csrc/core/ by itself: conversions of the 16-bit formats, and the elementary functions, against their definitions.
#include "../../csrc/core/bce.h"
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

// What bce.h promises beyond the formula: small losses keep their digits, and weights that are not finite make of a
// loss what they make of torch's.
template <class C>
void check_bce_digits() {
  const double relative = sizeof(C) == 8 ? 1e-12 : 2e-6;
  for (const double x : {-30.0, -15.0, -5.0, 5.0, 15.0, 30.0}) {
    const double target = x > 0 ? 1 : 0, w = 2, p = 3;  // where the loss is small
    const double exact = w * (x > 0 ? p : 1) * std::log1p(std::exp(-std::fabs(x)));
    const double loss = fastgan::bce_loss(C(x), C(target), C(w), C(p));
    expect_close(loss / exact, 1, 1, relative, "bce of a sure and right logit keeps its digits");
  }
  const C infinity = C(INFINITY);
  for (const C x : {C(-1), C(1)})
    expect(fastgan::bce_loss(x, C(x > 0 ? 1 : 0), infinity, C(1)) == infinity, "an infinite weight, an infinite loss");
  expect(fastgan::bce_loss(C(-1), C(1), C(1), infinity) == infinity, "an infinite positive weight, an infinite loss");
  expect(fastgan::bce_input_gradient(C(1), C(0), infinity, C(1)) == infinity &&
             fastgan::bce_input_gradient(C(1), C(1), infinity, C(1)) == -infinity,
         "an infinite weight, an infinite gradient");
}

// Each term of a loss against differences of itself, on both sides of a hinge's kink, and what is not a number.
void check_loss_terms() {
  const auto check = [](fastgan::LossTerm term, double t) {
    const std::string about = std::string(fastgan::loss_term_names[static_cast<int>(term)]) + " against ";
    fastgan::with_loss_term(term, [&](auto of) {
      for (double x = -6; x <= 6; x += 0.37) {  // not at 1 or -1
        const double h = 1e-5;
        expect_close(of.at(x, t).gradient, (of.at(x + h, t).loss - of.at(x - h, t).loss) / (2 * h), 10, 1e-9,
                     about + std::to_string(t) + "'s derivative");
        expect_close(of.second(x, t), (of.at(x + h, t).gradient - of.at(x - h, t).gradient) / (2 * h), 1, 1e-8,
                     about + std::to_string(t) + "'s second derivative");
        expect(fastgan::is_bent(of) || of.second(x, t) == 0, about + "is bent where its second derivative is not zero");
        expect(fastgan::scaled_gradient(of, of.at(x, t).gradient, 3.0) == 3 * of.at(x, t).gradient,
               about + "is scaled");
      }
      expect(std::isnan(of.at(double(NAN), t).loss), about + "keeps NaN");
    });
  };
  for (const double t : {0.0, 0.3, 1.0}) check(fastgan::LossTerm::cross_entropy, t);
  for (const double t : {-1.0, 1.0}) check(fastgan::LossTerm::hinge, t), check(fastgan::LossTerm::linear, t);
  for (const double t : {-2.5, 0.0, 1.0}) check(fastgan::LossTerm::square, t);
  const fastgan::LossOf<fastgan::LossTerm::hinge> hinge;
  expect(hinge.at(1.0, 1.0).gradient == 0 && hinge.at(double(NAN), 1.0).gradient == -1, "a hinge's kink, and NaN");
  expect(fastgan::scaled_gradient(hinge, 0.0, double(INFINITY)) == 0,
         "where a hinge gives nothing, nothing is infinite");
}

// Softplus is linear above 20, as torch's is by default, and not below.
void check_softplus_threshold() {
  const fastgan::ActivationArguments softplus{fastgan::Activation::softplus, 0};
  for (const double z : {19.5, 19.999, 20.0}) {
    const double negative = 1 / (1 + std::exp(z)), exact = (1 - negative) * negative;
    expect_close(derivative(softplus, z, 2) / exact, 1, 1, 1e-12, "softplus bends up to 20");
    expect(apply(softplus, z) != z && derivative(softplus, z, 1) != 1, "softplus is not linear up to 20");
  }
  for (const double z : {20.001, 20.5})
    expect(apply(softplus, z) == z && derivative(softplus, z, 1) == 1 && derivative(softplus, z, 2) == 0,
           "softplus is linear above 20");
}

}  // namespace

void check_core() {
  check_bce_digits<float>();
  check_bce_digits<double>();
  check_softplus_threshold();
  check_loss_terms();
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
