// SPDX-License-Identifier: Apache-2.0
// One lane: the membrane at work, the adder of weights, and threshold, leak and reset.
//
//     s = v if v >= 0 else (v * slope) >> FACTOR
//     spike = s > threshold
//     k = (s * decay) >> FACTOR, then 0 or less amount where there is a spike
//     after = k + bias; just the bias where the sample ends
//
// With SLOW, a neuron of a layer that oscillates or adapts has a slow state w of so many bits:
//
//     spike = s > threshold + w                                      where it adapts
//     w = (w * rho + left * pull + half) >> FACTOR, plus kick where there is a spike, saturated;
//         left is s, 0 where a spike leaves nothing; 0 where the sample ends
//     after = k + bias - w                                           where it oscillates
//
// A readout keeps v itself where it sums, and answers with (v * decay) >> FACTOR; answers leave
// through lane 0, each lane passing on those of the next.
//
// Operands and `data` are zero while nobody needs them: neither the threshold nor the membrane
// memory toggles with every addition, which saves power, and time of simulators.
module sb_lane #(
    parameter WEIGHT = 8,     // bits of a weight
    parameter MEMBRANE = 16,  // bits of a membrane
    parameter FRACTION = 0,   // bits of a membrane below the last bit of a weight
    parameter FACTOR = 8,     // bits of factors behind the point; 1 << FACTOR is the largest
    parameter SLOW = 0,       // bits of a slow state, at most FACTOR + MEMBRANE; 0: there is none
    parameter SLOWWIDE = 1,   // the same, at least 1
    parameter MULTIPLY = 3    // multipliers: 1 of decays, 2 of slopes; else factors are 0 or 1
) (
    input wire clk,
    input wire take,          // the membrane comes from its memory
    input wire accumulate,    // the weight is added to it
    input wire add,           // the weight is added to what comes from memory, and goes back
    input wire pass,          // threshold
    input wire send,          // the answer is shown,
    input wire shift,         // and taken
    input wire [MEMBRANE-1:0] membrane,
    input wire [WEIGHT-1:0] weight,
    input wire [MEMBRANE-1:0] next,       // answer of the next lane
    input wire [MEMBRANE-1:0] threshold,
    input wire [MEMBRANE-1:0] amount,
    input wire [MEMBRANE-1:0] bias,
    input wire [FACTOR:0] decay,
    input wire [SLOWWIDE-1:0] slow,       // w, all zero where the layer has none
    input wire [FACTOR:0] rho,
    input wire [FACTOR+2:0] pull,
    input wire [SLOWWIDE-1:0] kick,
    input wire oscillates,
    input wire adapts,
    input wire [FACTOR:0] slope,
    input wire readout,
    input wire sum,           // of a readout: over the steps
    input wire gate,          // a spike leaves nothing
    input wire subtract,      // a spike takes the amount
    input wire last,          // the sample ends
    output wire [MEMBRANE-1:0] s,
    output wire spike,
    output wire [SLOWWIDE-1:0] slow_data, // to the memory of slow states
    output wire [MEMBRANE-1:0] data       // to the memory, or the answer
);
    localparam [MEMBRANE-1:0] ZERO = 0;
    localparam PRODUCT = MEMBRANE + FACTOR + 2;
    reg [MEMBRANE-1:0] v;
    wire [MEMBRANE-1:0] total = (add ? membrane : v)
        + {{(MEMBRANE - WEIGHT - FRACTION){weight[WEIGHT-1]}}, weight, {FRACTION{1'b0}}};

    wire [MEMBRANE-1:0] operand = pass ? v : ZERO;
    wire [MEMBRANE-1:0] bent, leaked;

    generate
        if ((MULTIPLY & 2) != 0) begin : slopes
            wire [1:0] unused_top;
            wire [FACTOR-1:0] unused;
            wire signed [PRODUCT-1:0] wide = {{(FACTOR + 2){operand[MEMBRANE-1]}}, operand};
            assign {unused_top, bent, unused} = wide * $signed({{(MEMBRANE + 1){1'b0}}, slope});
        end else begin : kinks
            wire [FACTOR-1:0] unused = slope[FACTOR-1:0];
            assign bent = slope[FACTOR] ? operand : ZERO;
        end
        if ((MULTIPLY & 1) != 0) begin : decays
            wire [1:0] unused_top;
            wire [FACTOR-1:0] unused;
            wire signed [PRODUCT-1:0] wide = {{(FACTOR + 2){s[MEMBRANE-1]}}, s};
            assign {unused_top, leaked, unused} = wide * $signed({{(MEMBRANE + 1){1'b0}}, decay});
        end else begin : all_or_nothing
            wire [FACTOR-1:0] unused = decay[FACTOR-1:0];
            assign leaked = decay[FACTOR] ? s : ZERO;
        end
    endgenerate

    assign s = operand[MEMBRANE-1] && !readout ? bent : operand;

    wire cleared = last || (readout ? !sum : gate && spike);
    wire [MEMBRANE-1:0] kept = cleared ? ZERO : readout ? s : leaked;
    wire [MEMBRANE-1:0] turned;
    wire [MEMBRANE-1:0] after = kept - (subtract && spike && !last ? amount : ZERO) + bias
        - turned;

    generate
        if (SLOW != 0) begin : slow_state
            localparam RAISED = (MEMBRANE > SLOW ? MEMBRANE : SLOW) + 1;
            localparam SUM = (MEMBRANE + 2 > SLOW ? MEMBRANE + 2 : SLOW) + FACTOR + 3;
            localparam signed [SUM-1:0] HALF = 1 << (FACTOR - 1);
            localparam signed [SUM-1:0] TOP = (1 << (SLOW - 1)) - 1;
            wire signed [RAISED-1:0] level = {{(RAISED - MEMBRANE){threshold[MEMBRANE-1]}}, threshold}
                + (adapts ? {{(RAISED - SLOW){slow[SLOW-1]}}, slow} : {RAISED{1'b0}});
            wire [MEMBRANE-1:0] remains = gate && spike ? ZERO : s;
            wire signed [SUM-1:0] wide_slow = {{(SUM - SLOW){slow[SLOW-1]}}, slow};
            wire signed [SUM-1:0] wide_left = {{(SUM - MEMBRANE){remains[MEMBRANE-1]}}, remains};
            wire signed [SUM-1:0] wide_kick = {{(SUM - SLOW){kick[SLOW-1]}}, kick};
            wire signed [SUM-1:0] moved = (wide_slow * $signed({{(SUM - FACTOR - 1){1'b0}}, rho})
                + wide_left * $signed({{(SUM - FACTOR - 3){1'b0}}, pull}) + HALF) >>> FACTOR;
            wire signed [SUM-1:0] next_slow = moved + (spike ? wide_kick : {SUM{1'b0}});
            wire signed [SUM-1:0] held = next_slow > TOP ? TOP : next_slow < ~TOP ? ~TOP : next_slow;
            wire [SUM-SLOW-1:0] unused_held = held[SUM-1:SLOW];
            wire [SUM-1:0] turn = oscillates && !last ? held : {SUM{1'b0}};
            assign spike = $signed({{(RAISED - MEMBRANE){s[MEMBRANE-1]}}, s}) > level;
            assign slow_data = pass && !last && (oscillates || adapts) ? held[SLOW-1:0]
                : {SLOW{1'b0}};
            assign turned = turn[MEMBRANE-1:0];
            wire [SUM-MEMBRANE-1:0] unused_turn = turn[SUM-1:MEMBRANE];
        end else begin : no_slow_state
            wire [3*SLOWWIDE+2*FACTOR+5:0] unused_slow
                = {slow, kick, slow_data, rho, pull, oscillates, adapts};
            assign spike = $signed(s) > $signed(threshold);
            assign slow_data = {SLOWWIDE{1'b0}};
            assign turned = ZERO;
        end
    endgenerate

    assign data = pass ? after : add ? total : send ? v : ZERO;

    always @(posedge clk) begin
        if (take) v <= membrane;
        else if (accumulate) v <= total;
        else if (pass) v <= leaked;
        else if (shift) v <= next;
    end
endmodule
