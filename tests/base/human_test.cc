#include "common/base/human.h"

#include <gtest/gtest.h>

#include <limits>

namespace moe {
namespace {

TEST(FormatCountTest, GroupsDigits) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(7120), "7,120");
  EXPECT_EQ(FormatCount(1234567), "1,234,567");
  EXPECT_EQ(FormatCount(-999), "-999");
  EXPECT_EQ(FormatCount(-1000), "-1,000");
  EXPECT_EQ(FormatCount(std::numeric_limits<int64_t>::min()),
            "-9,223,372,036,854,775,808");
}

TEST(FormatTimeSpanTest, TwoUnits) {
  EXPECT_EQ(FormatTimeSpan(absl::ZeroDuration()), "0 ms");
  EXPECT_EQ(FormatTimeSpan(absl::Milliseconds(850)), "850 ms");
  EXPECT_EQ(FormatTimeSpan(absl::Microseconds(999'900)), "1.0 s");
  EXPECT_EQ(FormatTimeSpan(absl::Seconds(3.44)), "3.4 s");
  EXPECT_EQ(FormatTimeSpan(absl::Seconds(42)), "42 s");
  EXPECT_EQ(FormatTimeSpan(absl::Seconds(59.7)), "1 min 0 s");
  EXPECT_EQ(FormatTimeSpan(absl::Seconds(200)), "3 min 20 s");
  EXPECT_EQ(FormatTimeSpan(absl::Minutes(125)), "2 h 5 min");
  EXPECT_EQ(FormatTimeSpan(absl::Hours(76)), "3 d 4 h");
  EXPECT_EQ(FormatTimeSpan(absl::Seconds(-90)), "-1 min 30 s");
  EXPECT_EQ(FormatTimeSpan(absl::InfiniteDuration()), "unknown");
}

TEST(FormatBytesTest, BinaryUnits) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1024), "1.0 KiB");
  EXPECT_EQ(FormatBytes(1'288'490'189), "1.2 GiB");
  EXPECT_EQ(FormatBytes((1 << 20) - 1), "1.0 MiB");
  EXPECT_EQ(FormatBytes(std::numeric_limits<uint64_t>::max()), "16.0 EiB");
}

}  // namespace
}  // namespace moe
