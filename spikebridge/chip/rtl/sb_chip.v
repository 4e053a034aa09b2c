// SPDX-License-Identifier: Apache-2.0
// The core with the sizes of one program; see README.md for tokens and answers.
`include "program.vh"

module sb_chip #(
    parameter TRACE = 0       // 1: the trace port shows every row at its threshold
) (
    input wire clk,
    input wire rst,
    input wire in_valid,
    output wire in_ready,
    input wire [`SB_CODE+1:0] in_data,
    output wire out_valid,
    input wire out_ready,
    output wire [`SB_MEMBRANE-1:0] out_data,
    output wire [`SB_CODE-1:0] out_index,
    output wire out_last,
    output wire sample_done,
    output wire [47:0] cycles,
    output wire [15:0] refused,
    output wire overrun,
    output wire trace_valid,
    output wire [`SB_LAYER_INDEX-1:0] trace_layer,
    output wire [`SB_ADDRESS-1:0] trace_row,
    output wire [`SB_LANES*`SB_MEMBRANE-1:0] trace_membranes,
    output wire [`SB_LANES-1:0] trace_spikes
);
    sb_core #(
        .LAYERS(`SB_LAYERS), .LANES(`SB_LANES), .LANEBITS(`SB_LANEBITS), .WEIGHT(`SB_WEIGHT),
        .MEMBRANE(`SB_MEMBRANE), .FRACTION(`SB_FRACTION), .FACTOR(`SB_FACTOR),
        .MULTIPLY(`SB_MULTIPLY), .SLOW(`SB_SLOW),
        .SLOW_ROWS(`SB_SLOW_ROWS), .SLOW_INDEX(`SB_SLOW_INDEX),
        .CONVOLVE(`SB_CONVOLVE), .TRACE(TRACE),
        .MAX_STEPS(`SB_MAX_STEPS), .CODE(`SB_CODE), .ADDRESS(`SB_ADDRESS),
        .COORDINATE(`SB_COORDINATE), .XBITS(`SB_XBITS), .YBITS(`SB_YBITS), .CBITS(`SB_CBITS),
        .IN_IMAGE(`SB_IN_IMAGE), .IN_SIZE(`SB_IN_SIZE), .IN_HEIGHT(`SB_IN_HEIGHT),
        .IN_WIDTH(`SB_IN_WIDTH), .QUEUE_INDEX(`SB_QUEUE_INDEX), .WEIGHT_ROWS(`SB_WEIGHT_ROWS),
        .WEIGHT_INDEX(`SB_WEIGHT_INDEX), .MEMBRANE_ROWS(`SB_MEMBRANE_ROWS),
        .MEMBRANE_INDEX(`SB_MEMBRANE_INDEX), .EVENT_WORDS(`SB_EVENT_WORDS),
        .EVENT_INDEX(`SB_EVENT_INDEX), .LAYER_INDEX(`SB_LAYER_INDEX)
    ) core (
        .clk(clk), .rst(rst), .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),
        .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data), .out_index(out_index),
        .out_last(out_last), .sample_done(sample_done), .cycles(cycles), .refused(refused),
        .overrun(overrun), .trace_valid(trace_valid), .trace_layer(trace_layer),
        .trace_row(trace_row), .trace_membranes(trace_membranes), .trace_spikes(trace_spikes));
endmodule
