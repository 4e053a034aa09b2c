// SPDX-License-Identifier: Apache-2.0
// A spiking network, layer after layer on one row of adders, driven by events.
//
// The host sends tokens {kind, code}: an event (kind 0), the end of a step (1), the end of a step
// and of the sample (3).  Each step then passes all layers; the readout answers each step or at
// the end of a sample.  A word of the descriptor memory says what a layer is (see `fields` below).
//
//   dense layer    for each row of LANES neurons: fetch membranes and parameters, add one row of
//                  weights per event (one a cycle, two cycles of pipeline), threshold, write back,
//                  list the spikes (one a cycle)
//   convolution    for each event and tap: fetch a row of membranes and one of weights, add,
//                  write back; then all rows pass the threshold
//
// Layers that oscillate or adapt have a slow state beside each membrane, in a memory of its own.
//
// After a reset, a pass over all layers writes the bias to all membranes; so does the last step of
// a sample.  Memories have one port each, of which a cycle uses at most one.
module sb_core #(
    parameter LAYERS = 2,
    parameter LANES = 4,      // neurons that are added to at once, a power of two
    parameter LANEBITS = 2,   // bits that number the lanes, at least 1
    parameter WEIGHT = 8,     // bits of a weight
    parameter MEMBRANE = 16,  // bits of a membrane, more than WEIGHT + FRACTION
    parameter FRACTION = 0,   // bits of a membrane below the last bit of a weight
    parameter FACTOR = 8,     // bits of factors behind the point
    parameter MULTIPLY = 3,   // multipliers: 1 of decays, 2 of slopes; else factors are 0 or 1
    parameter SLOW = 0,       // bits of a slow state, 0: no layer has one
    parameter SLOW_ROWS = 2, parameter SLOW_INDEX = 1,
    parameter CONVOLVE = 1,   // 0: all layers are dense
    parameter TRACE = 0,      // 1: the trace port shows every row at its threshold
    parameter MAX_STEPS = 0,  // of a sample, 0 = any number
    parameter CODE = 8,       // bits of an event
    parameter ADDRESS = 16,   // bits of addresses and numbers
    parameter COORDINATE = 8, // of a convolution: bits of coordinates,
    parameter XBITS = 1,      //   and the fields of an event, {y, x, channel}
    parameter YBITS = 1,
    parameter CBITS = 1,
    parameter IN_IMAGE = 0,   // 1: events of the host are {y, x, channel}
    parameter IN_SIZE = 1,    // numbers of the host's events, or their channels
    parameter IN_HEIGHT = 1,
    parameter IN_WIDTH = 1,
    parameter QUEUE_INDEX = 6,
    parameter WEIGHT_ROWS = 2, parameter WEIGHT_INDEX = 1,
    parameter MEMBRANE_ROWS = 2, parameter MEMBRANE_INDEX = 1,
    parameter EVENT_WORDS = 2, parameter EVENT_INDEX = 1,
    parameter LAYER_INDEX = 1,
    parameter WEIGHT_IMAGE = "weights.mem",
    parameter PARAMETER_IMAGE = "parameters.mem",
    parameter SLOW_IMAGE = "slow.mem",
    parameter DESCRIPTOR_IMAGE = "descriptors.mem"
) (
    input wire clk,
    input wire rst,                        // synchronous; clears membranes too
    input wire in_valid,
    output wire in_ready,                  // low while the queue is full
    input wire [CODE+1:0] in_data,         // {kind, code}
    output wire out_valid,
    input wire out_ready,
    output wire [MEMBRANE-1:0] out_data,   // signed
    output wire [CODE-1:0] out_index,      // which output
    output wire out_last,                  // the last word of a sample
    output reg sample_done,                // for one cycle
    output reg [47:0] cycles,              // that the core worked: not those it waited in
    output reg [15:0] refused,             // events that were no input or out of order; stops at top
    output reg overrun,                    // a sample was cut off after MAX_STEPS
    output wire trace_valid,               // a row passes the threshold
    output wire [LAYER_INDEX-1:0] trace_layer,
    output wire [ADDRESS-1:0] trace_row,
    output wire [LANES*MEMBRANE-1:0] trace_membranes, // s, of a readout v
    output wire [LANES-1:0] trace_spikes
);
    localparam [3:0] LOAD = 4'd0, DESCRIBE = 4'd1, BEGIN = 4'd2, ROW = 4'd3, ACCUMULATE = 4'd4,
        LATCH = 4'd5, THRESHOLD = 4'd6, EMIT = 4'd7, READ = 4'd8, DECODE = 4'd9, TAP = 4'd10,
        ADD = 4'd11;
    localparam WIDE = LANES * MEMBRANE;
    localparam FIELDS = 17 * ADDRESS + 4 * COORDINATE + FACTOR + 14;
    localparam SLOWWIDE = SLOW == 0 ? 1 : SLOW;
    localparam TURN = 2 * FACTOR + 4 + SLOWWIDE; // bits of a rho, a pull and a kick
    localparam [ADDRESS-1:0] ZERO = 0, ONE = 1, LANES_A = LANES;

    // ------------------------------------------------------------------------------ the layer
    wire [FIELDS-1:0] fields;
    wire is_conv, is_recurrent, is_readout, is_sum, is_each, is_gate, is_subtract;
    wire oscillates, adapts;
    wire [ADDRESS-1:0] first_slow;              // address of its slow states
    wire [1:0] stride, pool;                    // their logarithms
    wire [FACTOR:0] slope;
    wire [COORDINATE-1:0] kernel, padding, height, width;
    wire [ADDRESS-1:0] last_row, last_chunk;    // numbers from 0
    wire [ADDRESS-1:0] lanes_used;              // in the last chunk
    wire [ADDRESS-1:0] first_row, first_weight; // addresses
    wire [ADDRESS-1:0] chunk_weights;           // rows of weights from one chunk to the next
    wire [ADDRESS-1:0] own_weights;             // rows of weights before those of own spikes
    wire [ADDRESS-1:0] list_a, list_b;          // where spikes are listed, in turn
    wire [ADDRESS-1:0] last_x;                  // of the image that the layer's neurons are
    wire [ADDRESS-1:0] code_x, code_y;          // added to events: to the next pixel, next line
    wire [ADDRESS-1:0] weight_x, weight_y;      // rows of weights from one tap to the next
    wire [ADDRESS-1:0] row_x, row_y;            // rows of membranes from one pixel to the next
    assign {first_slow, row_y, row_x, weight_y, weight_x, code_y, code_x, last_x, list_b, list_a, own_weights,
            chunk_weights, first_weight, first_row, lanes_used, last_chunk, last_row,
            height, width, padding, kernel, slope, pool, stride,
            adapts, oscillates, is_subtract, is_gate, is_each, is_sum, is_readout, is_recurrent, is_conv} = fields;
    wire convolve = CONVOLVE != 0 && is_conv;

    // -------------------------------------------------------------------------------- state
    reg [3:0] state;
    reg clearing;                     // the pass after a reset
    reg first, last, bank;            // step of the sample; which list spikes go to
    reg [LAYER_INDEX-1:0] layer;
    reg [ADDRESS-1:0] list, count;    // events that the layer hears
    reg [ADDRESS-1:0] own [0:LAYERS-1];           // spikes of each layer in the last step
    reg [ADDRESS-1:0] pointer, left, own_pointer, own_left; // still to be read
    reg [ADDRESS-1:0] spikes;         // listed so far
    reg [ADDRESS-1:0] row, row_address, chunk, x, weights, line_code, pixel_code, code;
    reg [COORDINATE-1:0] ky, kx;
    reg [LANES-1:0] fired;            // lanes still to be sent
    reg hearing, hearing_own, drained;
    reg some;                         // the step has had an event:
    reg [CODE-1:0] previous;

    wire token_valid;
    wire [CODE+1:0] token;
    wire [ADDRESS-1:0] list_now = bank ? list_b : list_a;
    wire [ADDRESS-1:0] list_before = bank ? list_a : list_b;
    wire more = left != ZERO, more_own = own_left != ZERO;
    wire [CODE-1:0] heard;            // event that was read
    wire [ADDRESS-1:0] heard_a = {{(ADDRESS - CODE){1'b0}}, heard};

    // -------------------------------------------------------------------------------- input
    wire load = state == LOAD && token_valid;
    wire is_event = token[CODE+1:CODE] == 2'd0;
    wire is_end = token[CODE];
    wire known;
    wire good = is_event && known && !(some && token[CODE-1:0] <= previous);
    wire cut;                         // no further step is allowed

    generate
        if (IN_IMAGE != 0) begin : image
            localparam [CBITS:0] C = IN_SIZE;
            localparam [XBITS:0] W = IN_WIDTH;
            localparam [CODE-XBITS-CBITS:0] H = IN_HEIGHT;
            assign known = {1'b0, token[0 +: CBITS]} < C && {1'b0, token[CBITS +: XBITS]} < W
                && {1'b0, token[CODE-1:CBITS+XBITS]} < H;
        end else begin : numbers
            localparam [CODE:0] N = IN_SIZE;
            assign known = {1'b0, token[CODE-1:0]} < N;
        end
        if (MAX_STEPS != 0) begin : limited
            localparam [20:0] TOP = MAX_STEPS - 1;
            reg [20:0] steps;
            assign cut = steps == TOP;
            always @(posedge clk) begin
                if (rst) steps <= 0;
                else if (load && is_end) steps <= token[CODE+1] || cut ? 21'd0 : steps + 21'd1;
            end
        end else begin : unlimited
            assign cut = 1'b0;
        end
    endgenerate

    sb_queue #(.WIDTH(CODE + 2), .INDEX(QUEUE_INDEX)) queue (
        .clk(clk), .rst(rst), .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),
        .out_valid(token_valid), .out_ready(state == LOAD), .out_data(token));

    // ----------------------------------------------------------------------------- memories
    wire read_event = state == READ || (state == ACCUMULATE && (more || more_own));
    wire write_event = state == EMIT && !is_readout;
    wire threshold = state == THRESHOLD;
    wire hit;
    wire fetch = state == TAP && hit;
    wire [ADDRESS-1:0] tap_weight, tap_row;
    wire tapping = state == TAP || state == ADD;
    wire [WIDE-1:0] membranes;
    reg [WIDE-1:0] data;
    wire [LANES*WEIGHT-1:0] weight_row;
    wire [LANES*(3*MEMBRANE+FACTOR+1)-1:0] parameters;
    wire [CODE-1:0] number;

    sb_rom #(.WIDTH(FIELDS), .DEPTH(LAYERS), .INDEX(LAYER_INDEX), .ADDRESS(LAYER_INDEX),
             .IMAGE(DESCRIPTOR_IMAGE)) descriptor_memory (
        .clk(clk), .enable(state == DESCRIBE), .address(layer), .q(fields));

    sb_ram #(.WIDTH(CODE), .DEPTH(EVENT_WORDS), .INDEX(EVENT_INDEX), .ADDRESS(ADDRESS))
    event_memory (
        .clk(clk), .enable(read_event || write_event || (load && good)), .write(!read_event),
        .address(state == LOAD ? count : write_event ? list_now + spikes
                 : more ? pointer : own_pointer),
        .data(state == LOAD ? token[CODE-1:0] : number), .q(heard));

    sb_rom #(.WIDTH(LANES * WEIGHT), .DEPTH(WEIGHT_ROWS), .INDEX(WEIGHT_INDEX),
             .ADDRESS(ADDRESS), .IMAGE(WEIGHT_IMAGE)) weight_memory (
        .clk(clk), .enable(hearing || fetch),
        .address(weights + (convolve ? tap_weight : heard_a + (hearing_own ? own_weights : ZERO))),
        .q(weight_row));

    sb_ram #(.WIDTH(WIDE), .DEPTH(MEMBRANE_ROWS), .INDEX(MEMBRANE_INDEX), .ADDRESS(ADDRESS))
    membrane_memory (
        .clk(clk), .enable(state == ROW || fetch || state == ADD || threshold),
        .write(state == ADD || threshold),
        .address(tapping ? first_row + tap_row + chunk : row_address),
        .data(data), .q(membranes));

    sb_rom #(.WIDTH(LANES * (3 * MEMBRANE + FACTOR + 1)), .DEPTH(MEMBRANE_ROWS),
             .INDEX(MEMBRANE_INDEX), .ADDRESS(ADDRESS), .IMAGE(PARAMETER_IMAGE)) parameter_memory (
        .clk(clk), .enable(state == ROW), .address(row_address), .q(parameters));

    wire [LANES*SLOWWIDE-1:0] slow_states;
    reg [LANES*SLOWWIDE-1:0] slow_data;
    wire [LANES*TURN-1:0] slow_parameters;
    wire has_slow = oscillates || adapts;
    wire [ADDRESS-1:0] slow_address = first_slow + row;
    generate
        if (SLOW != 0) begin : slow_memories
            sb_ram #(.WIDTH(LANES * SLOWWIDE), .DEPTH(SLOW_ROWS), .INDEX(SLOW_INDEX),
                     .ADDRESS(ADDRESS)) slow_memory (
                .clk(clk), .enable(has_slow && (state == ROW || threshold)), .write(threshold),
                .address(slow_address), .data(slow_data), .q(slow_states));
            sb_rom #(.WIDTH(LANES * TURN), .DEPTH(SLOW_ROWS), .INDEX(SLOW_INDEX),
                     .ADDRESS(ADDRESS), .IMAGE(SLOW_IMAGE)) slow_parameter_memory (
                .clk(clk), .enable(has_slow && state == ROW), .address(slow_address),
                .q(slow_parameters));
        end else begin : no_slow_memories
            wire [LANES*SLOWWIDE+ADDRESS:0] unused_slow = {slow_data, slow_address, has_slow};
            assign slow_states = 0;
            assign slow_parameters = 0;
        end
    endgenerate

    // ---------------------------------------------------------------------------- the lanes
    reg fresh, adding;                // stages of the pipeline: membranes, weights have come
    wire send = state == EMIT && is_readout;
    wire sent = state == EMIT && (!is_readout || out_ready);
    wire [LANES-1:0] spiking, present;
    reg [WIDE-1:0] level;
    genvar lane;
    generate
        for (lane = 0; lane < LANES; lane = lane + 1) begin : lanes
            localparam [ADDRESS-1:0] LANE = lane;
            wire [MEMBRANE-1:0] next, here, here_s;
            wire [SLOWWIDE-1:0] here_slow;
            if (lane == LANES - 1) begin : end_of_row
                assign next = {MEMBRANE{1'b0}};
            end else begin : in_row
                assign next = lanes[lane+1].here;
            end
            assign present[lane] = chunk != last_chunk || LANE < lanes_used;
            sb_lane #(.WEIGHT(WEIGHT), .MEMBRANE(MEMBRANE), .FRACTION(FRACTION), .FACTOR(FACTOR),
                      .SLOW(SLOW), .SLOWWIDE(SLOWWIDE), .MULTIPLY(MULTIPLY)) one (
                .clk(clk), .take(fresh), .accumulate(adding), .add(state == ADD), .pass(threshold),
                .send(send), .shift(send && sent),
                .membrane(membranes[lane*MEMBRANE +: MEMBRANE]),
                .weight(weight_row[lane*WEIGHT +: WEIGHT]), .next(next),
                .threshold(parameters[lane*MEMBRANE +: MEMBRANE]),
                .amount(parameters[WIDE + lane*MEMBRANE +: MEMBRANE]),
                .bias(parameters[2*WIDE + lane*MEMBRANE +: MEMBRANE]),
                .decay(parameters[3*WIDE + lane*(FACTOR+1) +: FACTOR+1]),
                .slow(slow_states[lane*SLOWWIDE +: SLOWWIDE]),
                .rho(slow_parameters[lane*TURN +: FACTOR+1]),
                .pull(slow_parameters[lane*TURN + FACTOR + 1 +: FACTOR+3]),
                .kick(slow_parameters[lane*TURN + 2*FACTOR + 4 +: SLOWWIDE]),
                .oscillates(oscillates), .adapts(adapts), .slow_data(here_slow),
                .slope(slope), .readout(is_readout), .sum(is_sum), .gate(is_gate),
                .subtract(is_subtract), .last(last), .s(here_s),
                .spike(spiking[lane]), .data(here));
            always @* data[lane*MEMBRANE +: MEMBRANE] = here;
            always @* slow_data[lane*SLOWWIDE +: SLOWWIDE] = here_slow;
            always @* level[lane*MEMBRANE +: MEMBRANE] = here_s;
        end
    endgenerate

    wire answering = last || is_each;
    wire [LANES-1:0] firing = clearing ? {LANES{1'b0}}
        : is_readout ? present & {LANES{answering}} : spiking;

    // Lowest lane that is still to be sent.
    reg [LANEBITS-1:0] lowest;
    integer at;
    always @* begin
        lowest = 0;
        for (at = LANES - 1; at >= 0; at = at - 1) if (fired[at]) lowest = at[LANEBITS-1:0];
    end
    wire [LANES-1:0] rest = fired & (fired - 1'b1);
    wire [ADDRESS-1:0] number_a = code + {{(ADDRESS - LANEBITS){1'b0}}, lowest};
    wire [ADDRESS-CODE-1:0] unused;
    assign {unused, number} = number_a;

    // ----------------------------------------------------------------------- convolution
    wire none, taps_end_y, taps_end_x;
    wire [COORDINATE-1:0] first_y, first_x, step;
    sb_taps #(.ADDRESS(ADDRESS), .COORDINATE(COORDINATE), .XBITS(XBITS), .YBITS(YBITS),
              .CBITS(CBITS)) taps (
        .event_code(heard[YBITS+XBITS+CBITS-1:0]), .ky(ky), .kx(kx), .kernel(kernel),
        .padding(padding), .stride(stride), .pool(pool), .height(height), .width(width),
        .weight_y(weight_y), .weight_x(weight_x), .row_y(row_y), .row_x(row_x),
        .first_y(first_y), .first_x(first_x), .none(none), .hit(hit),
        .last_y(taps_end_y), .last_x(taps_end_x), .step(step),
        .weight(tap_weight), .row(tap_row));
    wire tap_done = (state == TAP && !hit) || (state == ADD && chunk == last_chunk);
    wire event_done = tap_done ? taps_end_y && taps_end_x : state == DECODE && none;

    // --------------------------------------------------------------------------- sequence
    wire row_done = (threshold && firing == 0) || (sent && rest == 0);
    wire layer_done = row_done && row == last_row;
    wire step_done = layer_done && is_readout;
    wire [ADDRESS-1:0] spikes_now = write_event ? spikes + ONE : spikes;

    always @(posedge clk) begin
        if (rst) begin
            state <= DESCRIBE;
        end else begin
            case (state)
                LOAD: if (load && is_end) state <= DESCRIBE;
                DESCRIBE: state <= BEGIN;
                BEGIN: state <= convolve && count != ZERO ? READ : ROW;
                ROW: state <= convolve ? LATCH : ACCUMULATE;
                ACCUMULATE: if (drained) state <= THRESHOLD;
                LATCH: state <= THRESHOLD;
                THRESHOLD: if (firing != 0) state <= EMIT;
                READ: state <= DECODE;
                DECODE: state <= TAP;
                TAP: if (hit) state <= ADD;
                ADD: state <= TAP;
                default: ;
            endcase
            if (event_done) state <= more ? READ : ROW;
            if (row_done) state <= step_done ? LOAD : layer_done ? DESCRIBE : ROW;
        end
    end

    // Samples, steps and layers.
    always @(posedge clk) begin
        if (rst) begin
            clearing <= 1'b1;
            first <= 1'b1;
            last <= 1'b1;
            bank <= 1'b0;
            layer <= 0;
            list <= ZERO;
            count <= ZERO;
            some <= 1'b0;
            overrun <= 1'b0;
            refused <= 0;
        end else begin
            if (load && is_event && good) begin
                count <= count + ONE;
                some <= 1'b1;
                previous <= token[CODE-1:0];
            end
            if (load && !is_end && !good && refused != 16'hffff) refused <= refused + 16'd1;
            if (load && is_end) begin
                last <= token[CODE+1] || cut;
                some <= 1'b0;
                if (cut && !token[CODE+1]) overrun <= 1'b1;
            end
            if (layer_done) begin
                own[layer] <= spikes_now;
                layer <= is_readout ? {LAYER_INDEX{1'b0}} : layer + 1'b1;
                list <= is_readout ? ZERO : list_now;
                count <= is_readout ? ZERO : spikes_now;
            end
            if (step_done) begin
                clearing <= 1'b0;
                first <= last;
                bank <= !bank;
            end
        end
    end

    // Events on their way to the adders.
    always @(posedge clk) begin
        if (state == BEGIN || state == ROW) begin
            pointer <= list;
            left <= count;
            own_pointer <= list_before;
            own_left <= is_recurrent && !first ? own[layer] : ZERO;
        end else if (read_event) begin
            if (more) begin
                pointer <= pointer + ONE;
                left <= left - ONE;
            end else begin
                own_pointer <= own_pointer + ONE;
                own_left <= own_left - ONE;
            end
        end
        hearing <= state == ACCUMULATE && read_event;
        hearing_own <= !more;
        adding <= hearing;
        drained <= state == ACCUMULATE && !more && !more_own && !drained;
        fresh <= state == ROW;
    end

    // Rows, and the codes of their neurons.
    always @(posedge clk) begin
        if (state == BEGIN) begin
            row <= ZERO;
            row_address <= first_row;
            chunk <= ZERO;
            x <= ZERO;
            weights <= first_weight;
            spikes <= ZERO;
            line_code <= ZERO;
            pixel_code <= ZERO;
            code <= ZERO;
        end
        if (state == ADD) begin
            chunk <= tap_done ? ZERO : chunk + ONE;
            weights <= tap_done ? first_weight : weights + chunk_weights;
        end
        if (write_event) spikes <= spikes_now;
        if (row_done) begin
            row <= row + ONE;
            row_address <= row_address + ONE;
            chunk <= chunk == last_chunk ? ZERO : chunk + ONE;
            weights <= weights + chunk_weights;
            if (chunk != last_chunk) code <= code + LANES_A;
            else if (x != last_x) begin
                x <= x + ONE;
                pixel_code <= pixel_code + code_x;
                code <= pixel_code + code_x;
            end else begin
                x <= ZERO;
                line_code <= line_code + code_y;
                pixel_code <= line_code + code_y;
                code <= line_code + code_y;
            end
        end
    end

    // Taps of a convolution.
    always @(posedge clk) begin
        if (state == DECODE) begin
            ky <= first_y;
            kx <= first_x;
        end else if (tap_done) begin
            kx <= taps_end_x ? first_x : kx + step;
            if (taps_end_x) ky <= ky + step;
        end
    end

    // Lanes whose spikes or answers are still to be sent.
    always @(posedge clk) begin
        if (threshold) fired <= firing;
        else if (sent) fired <= rest;
    end

    // ------------------------------------------------------------------------------ output
    assign out_valid = send;
    assign out_data = data[MEMBRANE-1:0];
    assign out_index = number;
    assign out_last = last && row == last_row && rest == 0;

    wire waiting = (state == LOAD && !token_valid) || (out_valid && !out_ready);
    always @(posedge clk) begin
        if (rst) begin
            cycles <= 0;
            sample_done <= 1'b0;
        end else begin
            if (!clearing && !waiting) cycles <= cycles + 48'd1;
            sample_done <= step_done && last && !clearing;
        end
    end

    assign trace_valid = TRACE != 0 && threshold && !clearing;
    assign trace_layer = layer;
    assign trace_row = row;
    assign trace_membranes = TRACE != 0 ? level : {WIDE{1'b0}};
    assign trace_spikes = TRACE != 0 && !is_readout ? spiking : {LANES{1'b0}};
endmodule
