// SPDX-License-Identifier: Apache-2.0
// One lane: the membrane at work, the adder of weights, and threshold, leak and reset.
//
//     s = v if v >= 0 else (v * slope) >> FACTOR
//     spike = s > threshold
//     k = (s * decay) >> FACTOR, then 0 or less amount where there is a spike
//     after = k + bias; just the bias where the sample ends
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
    input wire [FACTOR:0] slope,
    input wire readout,
    input wire sum,           // of a readout: over the steps
    input wire gate,          // a spike leaves nothing
    input wire subtract,      // a spike takes the amount
    input wire last,          // the sample ends
    output wire [MEMBRANE-1:0] s,
    output wire spike,
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
    assign spike = $signed(s) > $signed(threshold);

    wire cleared = last || (readout ? !sum : gate && spike);
    wire [MEMBRANE-1:0] kept = cleared ? ZERO : readout ? s : leaked;
    wire [MEMBRANE-1:0] after = kept - (subtract && spike && !last ? amount : ZERO) + bias;

    assign data = pass ? after : add ? total : send ? v : ZERO;

    always @(posedge clk) begin
        if (take) v <= membrane;
        else if (accumulate) v <= total;
        else if (pass) v <= leaked;
        else if (shift) v <= next;
    end
endmodule
