// As much of GoogleTest as tests/kernels uses, for machines that don't have it (tests/bench/gpu.sh). The
// repository's own tests use the real one.
#pragma once

#include <cmath>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <sstream>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace testing {

class Message {
 public:
  template <typename T>
  Message& operator<<(const T& value) {
    if constexpr (requires(std::ostream& out) { out << value; }) {
      text_ << value;
    } else {
      text_ << "(" << sizeof(T) << " bytes)";
    }
    return *this;
  }
  std::string str() const { return text_.str(); }

 private:
  std::ostringstream text_;
};

namespace stand_in {

struct State {
  int failures = 0;  // of the test that runs
  bool skipped = false;
  std::vector<std::string> traces;
};
inline State& TheState() {
  static State state;
  return state;
}

struct Registered {
  std::string name;
  std::function<void()> run;
};
inline std::vector<Registered>& AllTests() {
  static std::vector<Registered> tests;
  return tests;
}
// Done once all files have registered what they have.
inline std::vector<std::function<void()>>& Instantiations() {
  static std::vector<std::function<void()>> all;
  return all;
}

template <typename T>
std::string Print(const T& value) {
  if constexpr (requires(std::ostream& out) { out << value; }) {
    std::ostringstream text;
    text.precision(9);
    text << value;
    return text.str();
  } else if constexpr (requires { value.begin(); value.size(); }) {
    return "{.. " + std::to_string(value.size()) + " values}";
  } else {
    return "(" + std::to_string(sizeof(T)) + " bytes)";
  }
}

// What a failed check says, when all of it has been said.
class Report {
 public:
  Report(const char* file, int line, std::string what) {
    text_ << file << ":" << line << ": " << what;
  }
  template <typename T>
  Report& operator<<(const T& value) {
    text_ << " " << Message().operator<<(value).str();
    return *this;
  }
  ~Report() {
    State& state = TheState();
    // The first few say what is wrong.
    if (++state.failures > 5) return;
    for (const std::string& trace : state.traces) text_ << "\n  in " << trace;
    std::fprintf(stderr, "%s\n", text_.str().c_str());
  }

 private:
  std::ostringstream text_;
};

// Takes the place of a Report, whose type an expression can't have in `return`.
struct Done {
  void operator=(const Report&) const {}
};

class Skip {
 public:
  template <typename T>
  Skip& operator<<(const T& value) {
    text_ << Message().operator<<(value).str();
    return *this;
  }
  ~Skip() {
    TheState().skipped = true;
    std::printf("  skipped: %s\n", text_.str().c_str());
  }

 private:
  std::ostringstream text_;
};
struct DoneSkipping {
  void operator=(const Skip&) const {}
};

struct Trace {
  explicit Trace(const Message& message) { TheState().traces.push_back(message.str()); }
  template <typename T>
  explicit Trace(const T& text) : Trace(Message() << text) {}
  ~Trace() { TheState().traces.pop_back(); }
};

// Empty if it holds.
template <typename A, typename B, typename Compare>
std::string Compared(const char* text, const A& a, const B& b, const Compare& compare) {
  if (compare(a, b)) return "";
  return std::string(text) + ", where " + Print(a) + " and " + Print(b);
}
inline std::string Near(const char* text, double a, double b, double most) {
  if (std::abs(a - b) <= most) return "";
  return std::string(text) + ", where " + Print(a) + " and " + Print(b) +
         " differ by more than " + Print(most);
}

}  // namespace stand_in

class Test {
 public:
  virtual ~Test() = default;
  virtual void SetUp() {}
  virtual void TearDown() {}
  virtual void TestBody() = 0;
};

template <typename T>
class TestWithParam : public Test {
 public:
  using ParamType = T;
  static const T& GetParam() { return *Current(); }
  static const T*& Current() {
    static const T* current = nullptr;
    return current;
  }
};

template <typename T>
struct TestParamInfo {
  T param;
  size_t index;
};

template <typename T>
std::vector<T> ValuesIn(const std::vector<T>& values) {
  return values;
}
template <typename T, typename... More>
std::vector<T> Values(const T& first, const More&... more) {
  return {first, more...};
}
template <typename A, typename B>
std::vector<std::tuple<A, B>> Combine(const std::vector<A>& as, const std::vector<B>& bs) {
  std::vector<std::tuple<A, B>> all;
  for (const A& a : as) {
    for (const B& b : bs) all.emplace_back(a, b);
  }
  return all;
}

namespace stand_in {

inline void RunOne(Test* (*make)()) {
  const std::unique_ptr<Test> test(make());
  test->SetUp();
  if (!TheState().skipped && TheState().failures == 0) test->TestBody();
  test->TearDown();
}

using MakeTest = Test* (*)();

// The tests of a suite with parameters, by its name.
inline std::map<std::string, std::vector<std::pair<std::string, MakeTest>>>& TestsOf() {
  static std::map<std::string, std::vector<std::pair<std::string, MakeTest>>> tests;
  return tests;
}

inline int RegisterOf(const std::string& suite, const std::string& name, MakeTest make) {
  TestsOf()[suite].emplace_back(name, make);
  return 0;
}

template <typename Suite, typename Values, typename Name>
int Instantiate(const std::string& prefix, const std::string& suite, const Values& values,
                const Name& name) {
  Instantiations().push_back([=] {
    for (size_t i = 0; i < values.size(); ++i) {
      using Param = typename Suite::ParamType;
      const auto param = std::make_shared<Param>(values[i]);
      for (const auto& [test, make] : TestsOf()[suite]) {
        AllTests().push_back(
            {prefix + "/" + suite + "." + test + "/" + name(TestParamInfo<Param>{*param, i}),
             [param, make = make] {
               Suite::Current() = param.get();
               RunOne(make);
             }});
      }
    }
  });
  return 0;
}

inline int Register(const std::string& name, MakeTest make) {
  AllTests().push_back({name, [make] { RunOne(make); }});
  return 0;
}

}  // namespace stand_in

// Runs all tests; the exit status of the program.
inline int RunAll(const std::string& filter) {
  for (const auto& instantiate : stand_in::Instantiations()) instantiate();
  int passed = 0;
  int failed = 0;
  int skipped = 0;
  for (const stand_in::Registered& test : stand_in::AllTests()) {
    if (test.name.find(filter) == std::string::npos) continue;
    stand_in::State& state = stand_in::TheState();
    state = {};
    test.run();
    ++(state.failures > 0 ? failed : state.skipped ? skipped : passed);
    std::printf("%s %s\n",
                state.failures > 0 ? "FAILED " : state.skipped ? "skipped" : "passed ",
                test.name.c_str());
    std::fflush(stdout);
  }
  std::printf("kernel tests: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
  return failed > 0 || passed == 0 ? 1 : 0;
}

}  // namespace testing

#define STAND_IN_TEST_(suite, name, base, registered)        \
  class suite##_##name##_Test : public base {                \
   public:                                                   \
    void TestBody() override;                                \
    static ::testing::Test* StandInMake() {                      \
      return new suite##_##name##_Test;                      \
    }                                                        \
  };                                                         \
  [[maybe_unused]] static const int suite##_##name##_done =  \
      ::testing::stand_in::registered;                       \
  void suite##_##name##_Test::TestBody()
#define TEST(suite, name)               \
  STAND_IN_TEST_(suite, name, ::testing::Test, \
                 Register(#suite "." #name, suite##_##name##_Test::StandInMake))
#define TEST_P(suite, name) \
  STAND_IN_TEST_(suite, name, suite, RegisterOf(#suite, #name, suite##_##name##_Test::StandInMake))
#define INSTANTIATE_TEST_SUITE_P(prefix, suite, values, ...)            \
  [[maybe_unused]] static const int prefix##_##suite##_instantiated =   \
      ::testing::stand_in::Instantiate<suite>(#prefix, #suite, values, __VA_ARGS__)

#define STAND_IN_CHECK_(otherwise, why)                                      \
  if (const std::string stand_in_why = (why); stand_in_why.empty()) {        \
  } else                                                                     \
    otherwise ::testing::stand_in::Report(__FILE__, __LINE__, stand_in_why)
#define STAND_IN_FATAL_ return ::testing::stand_in::Done() =
#define STAND_IN_COMPARE_(otherwise, a, b, op)                             \
  STAND_IN_CHECK_(otherwise, ::testing::stand_in::Compared(                \
                                 #a " " #op " " #b, a, b,                  \
                                 [](const auto& x, const auto& y) { return x op y; }))
#define EXPECT_EQ(a, b) STAND_IN_COMPARE_(, a, b, ==)
#define EXPECT_NE(a, b) STAND_IN_COMPARE_(, a, b, !=)
#define EXPECT_LT(a, b) STAND_IN_COMPARE_(, a, b, <)
#define EXPECT_LE(a, b) STAND_IN_COMPARE_(, a, b, <=)
#define EXPECT_GT(a, b) STAND_IN_COMPARE_(, a, b, >)
#define EXPECT_GE(a, b) STAND_IN_COMPARE_(, a, b, >=)
#define ASSERT_EQ(a, b) STAND_IN_COMPARE_(STAND_IN_FATAL_, a, b, ==)
#define ASSERT_NE(a, b) STAND_IN_COMPARE_(STAND_IN_FATAL_, a, b, !=)
#define ASSERT_LT(a, b) STAND_IN_COMPARE_(STAND_IN_FATAL_, a, b, <)
#define ASSERT_GE(a, b) STAND_IN_COMPARE_(STAND_IN_FATAL_, a, b, >=)
#define STAND_IN_NEAR_(otherwise, a, b, most) \
  STAND_IN_CHECK_(otherwise, ::testing::stand_in::Near(#a " near " #b, a, b, most))
#define EXPECT_NEAR(a, b, most) STAND_IN_NEAR_(, a, b, most)
#define ASSERT_NEAR(a, b, most) STAND_IN_NEAR_(STAND_IN_FATAL_, a, b, most)
#define STAND_IN_TRUE_(otherwise, x, want) \
  STAND_IN_CHECK_(otherwise, static_cast<bool>(x) == want ? "" : #x " isn't " #want)
#define EXPECT_TRUE(x) STAND_IN_TRUE_(, x, true)
#define EXPECT_FALSE(x) STAND_IN_TRUE_(, x, false)
#define ASSERT_TRUE(x) STAND_IN_TRUE_(STAND_IN_FATAL_, x, true)
#define GTEST_SKIP() \
  return ::testing::stand_in::DoneSkipping() = ::testing::stand_in::Skip()
#define STAND_IN_JOIN_(a, b) a##b
#define STAND_IN_NAME_(a, b) STAND_IN_JOIN_(a, b)
#define SCOPED_TRACE(message) \
  const ::testing::stand_in::Trace STAND_IN_NAME_(stand_in_trace_, __LINE__)(message)
