#include "client/moectl/flag_set.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moe {
namespace {

using ::testing::HasSubstr;

class FlagSetTest : public testing::Test {
 protected:
  FlagSetTest() {
    flags_.Add({.name = "job",
                .value = &job_,
                .placeholder = "FILE",
                .help = "The job.",
                .required = true});
    flags_.Add({.name = "split",
                .value = &split_,
                .placeholder = "SPLIT",
                .choices = {"test", "validation"}});
    flags_.Add({.name = "top", .value = &top_, .placeholder = "N", .minimum = -1});
    flags_.Add({.name = "timeout", .value = &timeout_, .placeholder = "TIME"});
    flags_.Add({.name = "json", .value = &json_});
  }
  std::string Error(std::vector<std::string> arguments) {
    const absl::Status status = flags_.Parse(arguments);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  }

  FlagSet flags_;
  std::string job_;
  std::string split_ = "test";
  int top_ = 3;
  absl::Duration timeout_ = absl::Seconds(5);
  bool json_ = false;
};

TEST_F(FlagSetTest, TakesValuesWithAndWithoutEqualsSign) {
  const std::vector<std::string> arguments = {
      "--job=a=b", "--split", "validation", "--top", "-1", "-json", "--timeout=200ms"};
  ASSERT_TRUE(flags_.Parse(arguments).ok());
  EXPECT_EQ(job_, "a=b");
  EXPECT_EQ(split_, "validation");
  EXPECT_EQ(top_, -1);
  EXPECT_TRUE(json_);
  EXPECT_EQ(timeout_, absl::Milliseconds(200));
}

TEST_F(FlagSetTest, SaysWhatIsWrong) {
  EXPECT_EQ(Error({}), "--job FILE is missing");
  EXPECT_EQ(Error({"--jbo=x"}), "unknown flag '--jbo=x'");
  EXPECT_EQ(Error({"x"}), "unexpected argument 'x'");
  EXPECT_EQ(Error({"--job"}), "--job needs a value");
  EXPECT_EQ(Error({"--json=1"}), "--json takes no value");
  EXPECT_EQ(Error({"--split=train"}),
            "--split is 'train'; it must be test or validation");
  EXPECT_EQ(Error({"--top=-2"}),
            "--top is '-2'; it must be a whole number of at least -1");
  EXPECT_EQ(Error({"--top=2x"}),
            "--top is '2x'; it must be a whole number of at least -1");
  EXPECT_EQ(Error({"--timeout=5"}),
            "--timeout is '5'; it must be a time like 500ms, 2s or 1m");
  EXPECT_EQ(Error({"--timeout=0s"}),
            "--timeout is '0s'; it must be a time like 500ms, 2s or 1m");
}

TEST_F(FlagSetTest, HelpHasEveryFlagWithItsDefault) {
  const std::string help = flags_.Help();
  EXPECT_THAT(help, HasSubstr("  --job FILE\n      The job. Required.\n"));
  EXPECT_THAT(help, HasSubstr("  --top N\n       Default: 3\n"));
  EXPECT_THAT(help, HasSubstr("Default: 5s\n"));
  EXPECT_THAT(help, HasSubstr("  --json\n"));
}

}  // namespace
}  // namespace moe
