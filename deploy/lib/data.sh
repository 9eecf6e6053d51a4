# shellcheck shell=bash
# run_local.sh: the text that the run trains on. Needs messages.sh, processes.sh, the options and the
# run's folder.

# Makes OUT/data, or a link there to what --data names.
prepare_data() {
  local folder="$out/data" source prepared=""
  if [[ -n $data ]]; then
    [[ $data -ef $folder ]] && return
    remove_data
    ln -s "$data" "$folder"
    return
  fi
  if ((resume)) && [[ -z $text && -e $folder/meta.json ]]; then return; fi
  source=$(describe_source)
  [[ -f $folder/source.txt ]] && prepared=$(<"$folder/source.txt")
  [[ $prepared != "$source" ]] || return 0
  if ((resume)); then
    die "the run in $out was trained on another text (${prepared:-that of $(realpath "$folder")})"
  fi

  say "Preparing the text: $source"
  local log="$logs/data.log" fresh="$out/data.new"
  local prepare=("$bin/worker/data/prepare_text" --out "$fresh")
  remove_data
  rm -rf "$fresh"
  if [[ -n $text ]]; then
    prepare+=(--text "$text")
  else
    fetch_kjv
    prepare+=(--text "$kjv" --strip_verse_references --min_count 3)
  fi
  run_step "preparing the text" "$log" "${prepare[@]}"
  say "$source" >"$fresh/source.txt"
  mv "$fresh" "$folder"
}

# Removes OUT/data of an earlier run, and never a folder that isn't this script's.
remove_data() {
  local folder="$out/data"
  [[ ! -e $folder || -L $folder || -f $folder/source.txt ]] ||
    die "$folder is there and no run of this script made it; give another folder by --out"
  rm -rf "$folder"
}

# Sets `kjv` to the King James Bible as a text file. Reading it takes some seconds, so it is kept.
fetch_kjv() {
  local reader="$repo/deploy/kjv_text.sh"
  kjv="${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/switchyard/kjv-$(kjv_version).txt"
  if [[ ! -f $kjv || $reader -nt $kjv ]]; then
    run_step "reading the King James Bible" "$logs/data.log" "$reader" "$kjv"
  fi
}

kjv_version() { dpkg-query -W -f '${Version}' sword-text-kjv; }

describe_source() {
  if [[ -n $text ]]; then
    say "${text##*/}, SHA-256 $(sha256sum <"$text" | cut -c 1-16)"
  else
    say "King James Bible, sword-text-kjv $(kjv_version)"
  fi
}
