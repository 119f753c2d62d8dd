# What a board tells of itself, one fact a line: a key, then values, separated by tabs.
# Plain POSIX sh: it runs before anything is known of the board. $1: bytes that are needed there.
LC_ALL=C
export LC_ALL
first() { tr '\000' ' ' 2>/dev/null <"$1" | head -n 1; }
tell() { if [ -r "$2" ]; then printf '%s\t%s\n' "$1" "$(first "$2")"; fi; }

printf 'system\t%s\n' "$(uname -s) $(uname -m)"
printf 'kernel\t%s\n' "$(uname -r)"
tell model /proc/device-tree/model
tell compatible /proc/device-tree/compatible
tell load /proc/loadavg
printf 'processors\t%s\n' "$(grep -c '^processor' /proc/cpuinfo 2>/dev/null)"
grep -E '^(MemTotal|MemAvailable|SwapTotal):' /proc/meminfo 2>/dev/null | while read -r name number unit; do
    printf 'memory\t%s\t%s\n' "${name%:}" "$number"
done

for file in /sys/kernel/debug/rknpu/version /proc/debug/rknpu/version /proc/rknpu/version /sys/module/rknpu/version; do
    tell driver "$file"
done
printf 'driver\t%s\n' "$(dmesg 2>/dev/null | grep -o 'Initialized rknpu [0-9.]*' | tail -n 1)"

for folder in /sys/devices/system/cpu/cpufreq/policy*; do
    [ -r "$folder/scaling_governor" ] || continue
    printf 'cpu\t%s\t%s\t%s\t%s\t%s\n' "${folder##*/}" "$(first "$folder/scaling_governor")" \
        "$folder/scaling_cur_freq" "$(first "$folder/scaling_cur_freq")" "$(first "$folder/cpuinfo_max_freq")"
done
for folder in /sys/class/devfreq/*; do
    [ -r "$folder/governor" ] || continue
    printf 'devfreq\t%s\t%s\t%s\t%s\t%s\n' "${folder##*/}" "$(first "$folder/governor")" \
        "$folder/cur_freq" "$(first "$folder/cur_freq")" "$(first "$folder/max_freq")"
done
for folder in /sys/class/thermal/thermal_zone*; do
    [ -r "$folder/temp" ] || continue
    limit=
    for trip in "$folder"/trip_point_*_type; do
        [ -r "$trip" ] && [ "$(first "$trip")" = passive ] || continue
        at=$(first "${trip%_type}_temp")
        if [ -z "$limit" ] || [ "$at" -gt "$limit" ]; then limit=$at; fi
    done
    printf 'thermal\t%s\t%s\t%s\t%s\n' "$(first "$folder/type")" "$folder/temp" "$(first "$folder/temp")" "$limit"
done
for folder in /sys/class/thermal/cooling_device*; do
    [ -r "$folder/cur_state" ] || continue
    printf 'cooling\t%s\t%s\t%s\n' "$(first "$folder/type")" "$folder/cur_state" "$(first "$folder/cur_state")"
done

if command -v python3 >/dev/null 2>&1; then
    printf 'python\t%s\t%s\n' "$(command -v python3)" \
        "$(python3 -I -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)"
fi

{
    for folder in /usr/lib /usr/lib64 /usr/lib/aarch64-linux-gnu /usr/local/lib /oem/usr/lib /vendor/lib64 \
        /system/lib64 /data/local/tmp "$HOME"; do
        if [ -r "$folder/librkllmrt.so" ]; then printf '%s\n' "$folder/librkllmrt.so"; fi
    done
    find /opt "$HOME" -maxdepth 4 -name librkllmrt.so -type f 2>/dev/null
} | sort -u | head -n 20 | while read -r library; do
    # Its own words, or a number that stands alone among its texts.
    found=$(tr -c '[:print:]' '\n' <"$library" | grep -o -E \
        'rkllm-runtime version: [0-9]+[.][0-9]+[.][0-9]+[a-z0-9]*|^[0-9]+[.][0-9]+[.][0-9]+[a-z0-9]*$' |
        sed 's/.* //' | sort -u | head -n 20 | tr '\n' ' ')
    printf 'library\t%s\t%s\n' "$library" "$found"
done

# Scratch space on the first that is large enough; /tmp last, which may be memory.
for folder in "$HOME" /userdata /data/local/tmp /var/tmp /tmp; do
    [ -d "$folder" ] && [ -w "$folder" ] || continue
    free=$(df -P -k "$folder" 2>/dev/null | tail -n 1 | awk '{ print $4 }')
    printf 'space\t%s\t%s\n' "$folder" "$free"
done
