
# ---- From here on the same in every job. ----

job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
history=$run/slurm/history  # one line for each start and end; launch/slurm/status.py reads it
: >>"$history"
tell() { echo "$(date -u +%FT%TZ) $name, job $job on $SLURM_JOB_NODELIST: $*"; }
note() { echo "$(date -u +%FT%TZ) $name $job $*" >>"$history"; }
is_cancelled() { grep -q " $name $job cancel" "$history"; }
# Changes with every new file there; half-written ones, which a crash leaves, do not count.
work() { ls "$progress" 2>/dev/null | grep -v '\.tmp$' | cksum | cut -d ' ' -f 1; }
# End here when more starts of this job in a row than it may have again have added nothing, however they ended.
stop_a_loop() {
    fruitless=$(awk -v name="$name" -v job="$job" -v now="$(work)" '
        $2 == name && $3 == job && $4 == "start" { n = $5 == now ? n + 1 : 0 }
        END { print n + 0 }' "$history")
    [ "$fruitless" -le "$restarts" ] && return
    tell "$fruitless starts have added nothing to $progress: it is not started again"
    note end 1
    exit 1
}

if is_cancelled; then
    tell "is cancelled"
    note end 75
    exit 75
fi
stop_a_loop
tell "start ${SLURM_RESTART_COUNT:-0}"
note start "$(work)" "$SLURM_JOB_NODELIST"
is_over=
trap 'is_over=1' TERM  # scancel, or the end of the job's time. The ranks are told, too, and write a checkpoint.
srun --kill-on-bad-exit=1 "${command[@]}" &
step=$!
while wait "$step"; code=$?; kill -0 "$step" 2>/dev/null; do :; done
[ "$code" = $((128 + 10)) ] && code=75  # a step that has nothing to save does not catch the warning
note end "$code"

case $code in
    0) tell "done" && exit 0 ;;
    2 | 3) tell "ended with exit code $code, which another start would not help" && exit "$code" ;;
    75) tell "was asked to stop" ;;
    *)
        last=$(tail -n 1 "$progress/../metrics.jsonl" 2>/dev/null | cut -d , -f 1,2)
        tell "a rank has failed or was killed (exit code $code), see above; the last step on record: ${last:-none}"
        ;;
esac
if [ -n "$is_over" ] || is_cancelled; then
    tell "is over"
    exit "$code"
fi
stop_a_loop
tell "will be started again"
scontrol requeue "$SLURM_JOB_ID" || tell "cannot be queued again: submit it once more, it goes on where it was"
exit "$code"
