// SPDX-License-Identifier: Apache-2.0
// Sends stimulus.txt to the chip and compares every row, output and cycle count with what the
// integer model expects.  Prints one line: PASS, or FAIL with the first difference.
//
//   +stall=P  the host pauses in P percent of the cycles, on both ports    +seed=S  other pauses
//   +reset=N  a reset N cycles after the start, and all over again
`include "program.vh"
`include "bench.vh"

module sb_bench;
    localparam WIDE = `SB_LANES * `SB_MEMBRANE;
    localparam IDLE = 100000;         // cycles without any progress that are given up

    reg clk, rst, in_valid, out_ready, over, failed;
    reg [`SB_CODE+1:0] in_data;
    wire in_ready, out_valid, out_last, sample_done, overrun, trace_valid;
    wire [`SB_MEMBRANE-1:0] out_data;
    wire [`SB_CODE-1:0] out_index;
    wire [47:0] cycles;
    wire [15:0] refused;
    wire [`SB_LAYER_INDEX-1:0] trace_layer;
    wire [`SB_ADDRESS-1:0] trace_row;
    wire [WIDE-1:0] trace_membranes;
    wire [`SB_LANES-1:0] trace_spikes;

    sb_chip #(.TRACE(1)) chip (
        .clk(clk), .rst(rst), .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),
        .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data), .out_index(out_index),
        .out_last(out_last), .sample_done(sample_done), .cycles(cycles), .refused(refused),
        .overrun(overrun), .trace_valid(trace_valid), .trace_layer(trace_layer),
        .trace_row(trace_row), .trace_membranes(trace_membranes), .trace_spikes(trace_spikes));

    integer stimulus_file, rows_file, outputs_file, samples_file, found;
    integer stall, seed, reset_at, now, idle, quiet, samples, rows, outputs, lane;
    reg [31:0] draw;
    reg [47:0] cycles_before, wanted_cycles;
    reg [15:0] wanted_refused;
    reg wanted_overrun, wanted_last;
    reg [`SB_CODE+1:0] wanted_token;
    reg [`SB_LAYER_INDEX-1:0] wanted_layer;
    reg [`SB_ADDRESS-1:0] wanted_row;
    reg [WIDE-1:0] wanted_membranes;
    reg [`SB_LANES-1:0] wanted_spikes;
    reg [`SB_MEMBRANE-1:0] wanted_data, shown, wanted_shown;
    reg [`SB_CODE-1:0] wanted_index;

    initial begin
        clk = 1'b0;
        forever #5 clk = !clk;
    end

    initial begin
        stall = 0;
        seed = 1;
        reset_at = 0;
        found = $value$plusargs("stall=%d", stall);
        found = $value$plusargs("seed=%d", seed);
        found = $value$plusargs("reset=%d", reset_at);
        draw = seed;
        now = 0;
        over = 1'b0;
        failed = 1'b0;
        rst = 1'b1;
        in_valid = 1'b0;
        in_data = 0;
        out_ready = 1'b0;
        start;
    end

    task start;
        begin
            stimulus_file = $fopen("stimulus.txt", "r");
            rows_file = $fopen("rows.txt", "r");
            outputs_file = $fopen("outputs.txt", "r");
            samples_file = $fopen("samples.txt", "r");
            if (stimulus_file == 0 || rows_file == 0 || outputs_file == 0 || samples_file == 0) begin
                $display("FAIL: a file is missing: run the bench in the folder of stimulus.txt");
                failed = 1'b1;
                $finish;
            end
            cycles_before = 0;
            idle = 0;
            quiet = 0;
            samples = 0;
            rows = 0;
            outputs = 0;
        end
    endtask

    // Whether the host pauses in this cycle.
    function pause;
        input [7:0] number;
        pause = ({24'd0, number} * 100 >> 8) < stall;
    endfunction

    task differs;                     // says where; the value is shown by the caller
        input [8*12-1:0] what;
        begin
            if (!failed) $display("FAIL: %0s: sample %0d, layer %0d, row %0d, lane %0d: %0d instead of %0d",
                what, samples, trace_layer, trace_row, lane, $signed(shown), $signed(wanted_shown));
            failed = 1'b1;
        end
    endtask

    always @(posedge clk) if (!failed && !over) begin
        now = now + 1;
        draw = draw * 32'd1664525 + 32'd1013904223;
        if (now == 3) rst <= 1'b0;
        if (reset_at != 0 && now == reset_at) rst <= 1'b1;
        if (reset_at != 0 && now == reset_at + 1) begin
            rst <= 1'b0;
            in_valid <= 1'b0;
            $fclose(stimulus_file);
            $fclose(rows_file);
            $fclose(outputs_file);
            $fclose(samples_file);
            start;
        end else if (!rst) begin
            check_row;
            check_output;
            check_sample;
            idle = idle + 1;
            if (!in_valid || in_ready) begin
                in_valid <= 1'b0;
                if (!pause(draw[31:24])) begin
                    found = $fscanf(stimulus_file, "%h", wanted_token);
                    if (found == 1) begin
                        idle = 0;
                        in_valid <= 1'b1;
                        in_data <= wanted_token;
                    end else quiet = quiet + 1;
                end
            end
            out_ready <= !pause(draw[23:16]);
            // All is sent; wait long enough for the slowest step, then see whether all came.
            if (quiet > 0 && !failed) finish;
            if (idle > IDLE && !failed) begin
                $display("FAIL: nothing happens after %0d samples", samples);
                failed = 1'b1;
            end
        end
        if (failed) $finish;
    end

    task check_row;
        if (trace_valid && !failed) begin
            idle = 0;
            found = $fscanf(rows_file, "%h %h %h %h", wanted_layer, wanted_row, wanted_spikes,
                            wanted_membranes);
            if (found != 4) begin
                $display("FAIL: more rows than the %0d expected", rows);
                failed = 1'b1;
            end else if (trace_layer !== wanted_layer || trace_row !== wanted_row) begin
                $display("FAIL: sample %0d: layer %0d, row %0d instead of layer %0d, row %0d",
                         samples, trace_layer, trace_row, wanted_layer, wanted_row);
                failed = 1'b1;
            end else if (trace_membranes !== wanted_membranes
                         || trace_spikes !== wanted_spikes) begin
                for (lane = 0; lane < `SB_LANES; lane = lane + 1) begin
                    shown = trace_membranes[lane*`SB_MEMBRANE +: `SB_MEMBRANE];
                    wanted_shown = wanted_membranes[lane*`SB_MEMBRANE +: `SB_MEMBRANE];
                    if (shown !== wanted_shown) differs("membrane");
                    shown = 0;
                    wanted_shown = 0;
                    shown[0] = trace_spikes[lane];
                    wanted_shown[0] = wanted_spikes[lane];
                    if (shown !== wanted_shown) differs("spike");
                end
            end
            rows = rows + 1;
        end
    endtask

    task check_output;
        if (out_valid && out_ready && !failed) begin
            idle = 0;
            found = $fscanf(outputs_file, "%h %h %h", wanted_index, wanted_data, wanted_last);
            if (found != 3) begin
                $display("FAIL: more outputs than the %0d expected", outputs);
                failed = 1'b1;
            end else if (out_index !== wanted_index || out_data !== wanted_data
                         || out_last !== wanted_last) begin
                $display("FAIL: sample %0d: output %0d is %0d, last %0d, instead of %0d, %0d, %0d",
                         samples, out_index, $signed(out_data), out_last, wanted_index,
                         $signed(wanted_data), wanted_last);
                failed = 1'b1;
            end
            outputs = outputs + 1;
        end
    endtask

    task check_sample;                // cycles, and the flags at the end of a sample
        if (sample_done && !failed) begin
            idle = 0;
            found = $fscanf(samples_file, "%d %d %d", wanted_cycles, wanted_refused,
                            wanted_overrun);
            if (found != 3) begin
                $display("FAIL: more samples than the %0d expected", samples);
                failed = 1'b1;
            end else if (cycles - cycles_before !== wanted_cycles) begin
                $display("FAIL: sample %0d took %0d cycles instead of %0d", samples,
                         cycles - cycles_before, wanted_cycles);
                failed = 1'b1;
            end else if (refused !== wanted_refused || overrun !== wanted_overrun) begin
                $display("FAIL: sample %0d: refused %0d, overrun %0d instead of %0d, %0d", samples,
                         refused, overrun, wanted_refused, wanted_overrun);
                failed = 1'b1;
            end
            cycles_before = cycles;
            samples = samples + 1;
        end
    endtask

    task finish;
        if (samples == `SB_SAMPLES && quiet > 100) begin
            if (rows != `SB_TRACED || outputs != `SB_ANSWERS) begin
                $display("FAIL: %0d rows and %0d outputs instead of %0d and %0d", rows, outputs,
                         `SB_TRACED, `SB_ANSWERS);
                failed = 1'b1;
            end else begin
                over = 1'b1;
                $display("PASS: %0d samples, %0d rows, %0d outputs, %0d cycles", samples, rows,
                         outputs, cycles);
                $finish;
            end
        end
    endtask
endmodule
