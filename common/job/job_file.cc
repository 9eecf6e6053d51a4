#include "common/job/job_file.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"
#include "common/io/file.h"
#include "common/job/check_moe.h"
#include "common/job/field_checks.h"
#include "common/job/mixtures.h"
#include "common/job/model_plan.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/tokenizer.h"
#include "google/protobuf/text_format.h"

namespace moe {
namespace {

using google::protobuf::Descriptor;

std::string FieldNames(const Descriptor& message) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) {
    names.push_back(message.field(i)->name());
  }
  return absl::StrJoin(names, ", ");
}

// Collects the text format parser's errors as "source:line:column: what".
class ErrorLines : public google::protobuf::io::ErrorCollector {
 public:
  ErrorLines(const std::string& text, const std::string& source)
      : text_(text), source_(source) {}

  void AddError(int line, google::protobuf::io::ColumnNumber column,
                const std::string& message) override {
    // The parser quotes names: they are the pieces at odd places.
    const std::vector<std::string> pieces = absl::StrSplit(message, '"');
    if (pieces.size() == 5 && pieces[0] == "Message type " &&
        pieces[2] == " has no field named ") {
      MoveToWord(pieces[3], &line, &column);
      const Descriptor* type =
          v1::Job::descriptor()->file()->pool()->FindMessageTypeByName(pieces[1]);
      Append(line, column,
             absl::StrCat("no field named \"", pieces[3], "\" in ", pieces[1],
                          type == nullptr ? "" : "; it has " + FieldNames(*type)));
    } else if (pieces.size() == 5 && pieces[0] == "Unknown enumeration value of ") {
      MoveToWord(pieces[1], &line, &column);
      Append(line, column,
             absl::StrCat("no value named \"", pieces[1], "\" for field \"", pieces[3],
                          "\"; it must be one of ", EnumValues(pieces[3])));
    } else {
      Append(line, column, message);
    }
  }

  std::string Join() const { return absl::StrJoin(lines_, "\n"); }

 private:
  void Append(int line, int column, const std::string& what) {
    lines_.push_back(absl::StrCat(source_, ":", line + 1, ":", column + 1, ": ", what));
  }

  // The parser reports the token after the wrong word: goes back to the word.
  void MoveToWord(const std::string& word, int* line, int* column) const {
    size_t line_begin = 0;
    for (int i = 0; i < *line; ++i) {
      line_begin = text_.find('\n', line_begin);
      if (line_begin == std::string::npos) return;
      ++line_begin;
    }
    const size_t at = text_.rfind(word, line_begin + *column - word.size());
    if (at == std::string::npos) return;
    const std::string before = text_.substr(0, at);
    *line = static_cast<int>(std::count(before.begin(), before.end(), '\n'));
    const size_t newline = before.rfind('\n');
    *column = static_cast<int>(newline == std::string::npos ? at : at - newline - 1);
  }

  const std::string& text_;
  const std::string& source_;
  std::vector<std::string> lines_;
};

// Lists every field that is wrong.
class Validator : private FieldChecks {
 public:
  std::vector<std::string> Run(const v1::Job& job) {
    CheckName(job.name());
    CheckModel(job.model(), job.training());
    CheckOptimizer(job.optimizer(), job.model());
    CheckTraining(job.training());
    CheckAtLeast("checkpointing.every_steps", job.checkpointing().every_steps(), 0);
    CheckAtLeast("checkpointing.every_minutes", job.checkpointing().every_minutes(), 0);
    CheckAtLeast("checkpointing.keep_last", job.checkpointing().keep_last(), 0);
    return TakeErrors();
  }

 private:
  void CheckName(const std::string& name) {
    if (name.empty()) {
      Fail("name", "is not set: letters, digits, '-', '_' and '.', such as \"kjv-moe\"");
      return;
    }
    const auto allowed = [](unsigned char c) {
      return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.';
    };
    if (absl::ascii_isalnum(static_cast<unsigned char>(name[0])) &&
        std::all_of(name.begin(), name.end(), allowed)) {
      return;
    }
    Fail("name",
         absl::StrCat("is \"", absl::CHexEscape(name),
                      "\": must be letters, digits, '-', '_' and '.', and begin with a "
                      "letter or a digit"));
  }

  void CheckModel(const v1::Model& model, const v1::Training& training) {
    CheckSize("model.d_model", model.d_model());
    CheckAtLeast("model.vocabulary", model.vocabulary(), 0);
    CheckFraction("model.embedding_dropout", model.embedding_dropout());
    CheckNotNegative("model.initialization.uniform_scale",
                     model.initialization().uniform_scale());
    if (model.has_tables()) CheckTables(model.tables(), model.vocabulary());
    if (model.layers().empty())
      Fail("model.layers", "is empty: at least one layer is needed");
    for (int l = 0; l < model.layers_size(); ++l) {
      const v1::Layer& layer = model.layers(l);
      const std::string path = absl::StrCat("model.layers[", l, "]");
      CheckFraction(path + ".dropout", layer.dropout());
      switch (layer.kind_case()) {
        case v1::Layer::kLstm:
          CheckLstm(path + ".lstm", layer.lstm(), model.d_model());
          break;
        case v1::Layer::kMoe:
          CheckMoe(path + ".moe", layer.moe(), training, *this);
          break;
        case v1::Layer::kRecurrentMoe:
          CheckRecurrentMoe(path + ".recurrent_moe", layer.recurrent_moe(),
                            model.d_model(), training, *this);
          break;
        case v1::Layer::KIND_NOT_SET:
          Fail(path, "has no kind: set lstm, moe or recurrent_moe");
          break;
      }
    }
  }

  void CheckTables(const v1::Tables& tables, int32_t vocabulary) {
    CheckSize("model.tables.shards", tables.shards());
    CheckSize("model.tables.candidates", tables.candidates());
    if (vocabulary <= 0) return;
    const absl::Status fit = CheckCandidates(tables, vocabulary);
    if (!fit.ok()) Fail(std::string(fit.message()));
  }

  void CheckLstm(const std::string& path, const v1::Lstm& lstm, int32_t d_model) {
    CheckSize(path + ".hidden", lstm.hidden());
    CheckAtLeast(path + ".projection", lstm.projection(), 0);
    CheckFinite(path + ".forget_bias", lstm.forget_bias());
    if (lstm.projection() > 0 && lstm.projection() != d_model) {
      Fail(path + ".projection",
           absl::StrCat("is ", lstm.projection(), ": must be d_model (", d_model,
                        "), or 0 for no projection"));
    } else if (lstm.projection() == 0 && lstm.hidden() != d_model) {
      Fail(path + ".hidden", absl::StrCat("is ", lstm.hidden(), ": must be d_model (",
                                          d_model, "), because projection is 0"));
    }
  }

  void CheckOptimizer(const v1::Optimizer& optimizer, const v1::Model& model) {
    if (optimizer.kind_case() == v1::Optimizer::KIND_NOT_SET) {
      Fail("optimizer", "has no kind: set adam or sgd");
    }
    if (optimizer.has_adam()) CheckAdam("optimizer.adam", optimizer.adam());
    if (optimizer.has_experts()) CheckExpertsOptimizer(optimizer, model);
    CheckTablesOptimizer(optimizer, model);
    CheckNotNegative("optimizer.clip_norm", optimizer.clip_norm());

    const v1::Schedule& schedule = optimizer.schedule();
    CheckPositive("optimizer.schedule.base_rate", schedule.base_rate());
    if (schedule.has_inverse_sqrt()) {
      CheckAtLeast("optimizer.schedule.inverse_sqrt.warmup_steps",
                   schedule.inverse_sqrt().warmup_steps(), 1);
    }
    if (schedule.has_step_decay()) {
      CheckAtLeast("optimizer.schedule.step_decay.constant_epochs",
                   schedule.step_decay().constant_epochs(), 0);
      const float factor = schedule.step_decay().factor();
      if (!(factor > 0 && factor <= 1)) {
        Fail("optimizer.schedule.step_decay.factor",
             absl::StrCat("is ", factor, ": must be in (0, 1]"));
      }
    }
  }

  void CheckAdam(const std::string& path, const v1::Adam& adam) {
    CheckFraction(path + ".beta1", adam.beta1());
    CheckFraction(path + ".beta2", adam.beta2());
    CheckPositive(path + ".epsilon", adam.epsilon());
    if (!v1::SecondMoment_IsValid(adam.second_moment())) {
      Fail(path + ".second_moment",
           absl::StrCat("is ", static_cast<int>(adam.second_moment()),
                        ": must be one of ", EnumValues("second_moment")));
    }
  }

  void CheckBesideAdam(const std::string& path, const v1::Optimizer& optimizer) {
    if (!optimizer.has_sgd()) return;
    Fail(path,
         "is set beside sgd: it needs adam for the other parameters, because all share "
         "a learning rate");
  }

  void CheckTablesOptimizer(const v1::Optimizer& optimizer, const v1::Model& model) {
    if (optimizer.has_tables()) {
      CheckAdam("optimizer.tables", optimizer.tables());
      CheckBesideAdam("optimizer.tables", optimizer);
      if (!model.has_tables()) {
        Fail("optimizer.tables",
             "is set, but the model has no tables: leave it out, or set model.tables");
      }
    }
    const bool own = optimizer.has_tables();
    const v1::Adam& adam = own ? optimizer.tables() : optimizer.adam();
    if (model.has_tables() && adam.second_moment() == v1::SECOND_MOMENT_FACTORED) {
      Fail(
          own ? "optimizer.tables.second_moment" : "optimizer.adam.second_moment",
          absl::StrCat("is SECOND_MOMENT_FACTORED: rows of tables are updated one by one "
                       "and have no means over columns; ",
                       own ? "" : "set optimizer.tables, with ",
                       "SECOND_MOMENT_PER_ROW or SECOND_MOMENT_FULL"));
    }
  }

  void CheckExpertsOptimizer(const v1::Optimizer& optimizer, const v1::Model& model) {
    CheckAdam("optimizer.experts", optimizer.experts());
    CheckBesideAdam("optimizer.experts", optimizer);
    const auto is_moe = [](const v1::Layer& layer) {
      return layer.has_moe() || layer.has_recurrent_moe();
    };
    if (std::none_of(model.layers().begin(), model.layers().end(), is_moe)) {
      Fail("optimizer.experts",
           "is set, but no layer has experts: leave it out, or give the model a moe "
           "layer");
    }
  }

  void CheckTraining(const v1::Training& training) {
    CheckSize("training.replicas", training.replicas());
    CheckSize("training.lanes", training.lanes());
    CheckSize("training.unroll", training.unroll());
    if (training.waves() < 1 || training.waves() > training.lanes() ||
        training.lanes() % training.waves() != 0) {
      Fail("training.waves",
           absl::StrCat("is ", training.waves(), ": must divide lanes (",
                        training.lanes(), ")"));
    }
    CheckAtLeast("training.steps", training.steps(), 0);
    CheckAtLeast("training.epochs", training.epochs(), 0);
    if (training.steps() == 0 && training.epochs() == 0) {
      Fail("training", "has no end: set steps or epochs");
    }
    CheckAtLeast("training.evaluate_every", training.evaluate_every(), 0);
    CheckAtLeast("training.dense_shards", training.dense_shards(), 0);
  }
};

void FillDefaults(v1::Adam* adam) {
  if (!adam->has_beta1()) adam->set_beta1(0.9f);
  if (!adam->has_beta2()) adam->set_beta2(0.999f);
  if (!adam->has_epsilon()) adam->set_epsilon(1e-8f);
  if (adam->second_moment() == v1::SECOND_MOMENT_UNSPECIFIED) {
    adam->set_second_moment(v1::SECOND_MOMENT_FULL);
  }
}

}  // namespace

absl::Status CheckCandidates(const v1::Tables& tables, int64_t vocabulary) {
  if (tables.candidates() <= vocabulary / 2) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("model.tables.candidates is ", tables.candidates(),
                   ": must be at most half of the vocabulary (", vocabulary,
                   "); without model.tables the softmax is over all words"));
}

absl::StatusOr<v1::Job> ReadJobFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseJob(text, path);
}

absl::StatusOr<v1::Job> ParseJob(const std::string& text, const std::string& source) {
  v1::Job job;
  ErrorLines errors(text, source);
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&errors);
  if (!parser.ParseFromString(text, &job)) {
    return absl::InvalidArgumentError(errors.Join());
  }
  FillDefaults(&job);
  const std::vector<std::string> wrong = Validator().Run(job);
  if (!wrong.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        source, ": ", absl::StrJoin(wrong, absl::StrCat("\n", source, ": "))));
  }
  return job;
}

void FillDefaults(v1::Job* job) {
  v1::Optimizer& optimizer = *job->mutable_optimizer();
  if (optimizer.has_adam()) FillDefaults(optimizer.mutable_adam());
  if (optimizer.has_experts()) FillDefaults(optimizer.mutable_experts());
  if (optimizer.has_tables()) FillDefaults(optimizer.mutable_tables());
  if (optimizer.schedule().kind_case() == v1::Schedule::KIND_NOT_SET) {
    optimizer.mutable_schedule()->mutable_constant();
  }
  for (v1::Moe* moe : MutableMixtures(job->mutable_model())) {
    if (moe->gating() == v1::GATING_SOFTMAX && moe->k() == 0) {
      moe->set_k(moe->experts());
    }
    if (moe->parameters() == v1::PARAMETERS_UNSPECIFIED) {
      moe->set_parameters(v1::PARAMETERS_FLOAT32);
    }
  }
  if (job->training().dense_shards() == 0) {
    job->mutable_training()->set_dense_shards(kDefaultDenseShards);
  }
}

absl::Status ValidateJob(const v1::Job& job) {
  const std::vector<std::string> wrong = Validator().Run(job);
  return wrong.empty() ? absl::OkStatus()
                       : absl::InvalidArgumentError(absl::StrJoin(wrong, "\n"));
}

}  // namespace moe
