"""The messages of Caffe's two files, as protobuf classes made from a table at import.

Names and numbers are those of BVLC Caffe's caffe.proto, so these classes read and write Caffe's own
format. There is no generated code and no protoc.

There are three differences:

- `BlobProto.data` and `double_data` are bytes. A packed list of floats has the same form on the
  wire, and bytes go to and from numpy without a Python object for each number.
- `PoolingParameter.ceil_mode` has a number of its own. The fork that introduced it used 13, which
  in BVLC is `round_mode` with the opposite meaning. Only a text can tell them apart, by the name.
- `fault` of a layer is not Caffe's: `text` writes there what is wrong with the layer's fields.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Key: message. Value: fields, each "type name number [default]"; a type with * is repeated.
MESSAGES = {
    "BlobShape": "int64* dim 1",
    "BlobProto": """bytes* data 5, bytes* double_data 8, BlobShape shape 7,
        int64 num 1, int64 channels 2, int64 height 3, int64 width 4""",
    "FillerParameter": """string type 1, float value 2, float min 3, float max 4, float mean 5,
        float std 6, int32 sparse 7, VarianceNorm variance_norm 8""",
    "NetState": "Phase phase 1 TEST, int32 level 2, string* stage 3",
    "NetStateRule": """Phase phase 1, int32 min_level 2, int32 max_level 3, string* stage 4,
        string* not_stage 5""",
    "ParamSpec": "string name 1, DimCheckMode share_mode 2, float lr_mult 3, float decay_mult 4",
    "NetParameter": """string name 1, string* input 3, BlobShape* input_shape 8,
        int32* input_dim 4, bool force_backward 5, NetState state 6, bool debug_info 7,
        LayerParameter* layer 100, V1LayerParameter* layers 2""",
    "LayerParameter": """string name 1, string type 2, string* bottom 3, string* top 4,
        float* loss_weight 5, ParamSpec* param 6, BlobProto* blobs 7, NetStateRule* include 8,
        NetStateRule* exclude 9, Phase phase 10, bool* propagate_down 11,
        TransformationParameter transform_param 100, LossParameter loss_param 101,
        AccuracyParameter accuracy_param 102, ConcatParameter concat_param 104,
        ConvolutionParameter convolution_param 106, DataParameter data_param 107,
        DropoutParameter dropout_param 108, EltwiseParameter eltwise_param 110,
        HDF5DataParameter hdf5_data_param 112, ImageDataParameter image_data_param 115,
        InnerProductParameter inner_product_param 117, LRNParameter lrn_param 118,
        MemoryDataParameter memory_data_param 119, PoolingParameter pooling_param 121,
        PowerParameter power_param 122, ReLUParameter relu_param 123,
        SigmoidParameter sigmoid_param 124, SoftmaxParameter softmax_param 125,
        SliceParameter slice_param 126, TanHParameter tanh_param 127,
        PReLUParameter prelu_param 131, ReshapeParameter reshape_param 133,
        FlattenParameter flatten_param 135, BatchNormParameter batch_norm_param 139,
        ELUParameter elu_param 140, ScaleParameter scale_param 142,
        InputParameter input_param 143, ClipParameter clip_param 148,
        ShuffleChannelParameter shuffle_channel_param 164, string fault 1001""",
    # Layers of `layers`, the form that Caffe wrote until 2014.
    "V1LayerParameter": """string* bottom 2, string* top 3, string name 4, LayerType type 5,
        BlobProto* blobs 6, string* param 1001, DimCheckMode* blob_share_mode 1002,
        float* blobs_lr 7, float* weight_decay 8, float* loss_weight 35, NetStateRule* include 32,
        NetStateRule* exclude 33, AccuracyParameter accuracy_param 27,
        ConcatParameter concat_param 9, ConvolutionParameter convolution_param 10,
        DataParameter data_param 11, DropoutParameter dropout_param 12,
        EltwiseParameter eltwise_param 24, HDF5DataParameter hdf5_data_param 13,
        ImageDataParameter image_data_param 15, InnerProductParameter inner_product_param 17,
        LRNParameter lrn_param 18, MemoryDataParameter memory_data_param 22,
        PoolingParameter pooling_param 19, PowerParameter power_param 21,
        ReLUParameter relu_param 30, SigmoidParameter sigmoid_param 38,
        SoftmaxParameter softmax_param 39, SliceParameter slice_param 31,
        TanHParameter tanh_param 37, TransformationParameter transform_param 36,
        LossParameter loss_param 42, string fault 1003""",
    # A layer's place in the network: the fields that are read if other fields are unknown.
    "LayerPlace": """string name 1, string type 2, string* bottom 3, string* top 4,
        NetStateRule* include 8, NetStateRule* exclude 9, Phase phase 10""",
    "V1LayerPlace": """string* bottom 2, string* top 3, string name 4,
        V1LayerParameter.LayerType type 5, NetStateRule* include 32, NetStateRule* exclude 33""",
    # A caffemodel as it is read: layers and blobs stay bytes until they are needed, so that a
    # million empty ones cost little.
    "StoredNet": "bytes* layer 100, bytes* layers 2",
    "StoredLayer": "string name 1, bytes* blobs 7",
    "StoredV1Layer": "string name 4, bytes* blobs 6",
    # Layers that compute.
    "BatchNormParameter": """bool use_global_stats 1, float moving_average_fraction 2,
        float eps 3 1e-5""",
    "ClipParameter": "float min 1, float max 2",
    "ConcatParameter": "uint32 concat_dim 1 1, int32 axis 2 1",
    "ConvolutionParameter": """uint32 num_output 1, bool bias_term 2 true, uint32* pad 3,
        uint32* kernel_size 4, uint32* stride 6, uint32* dilation 18, uint32 pad_h 9,
        uint32 pad_w 10, uint32 kernel_h 11, uint32 kernel_w 12, uint32 stride_h 13,
        uint32 stride_w 14, uint32 group 5 1, FillerParameter weight_filler 7,
        FillerParameter bias_filler 8, Engine engine 15, int32 axis 16 1,
        bool force_nd_im2col 17""",
    "DropoutParameter": "float dropout_ratio 1",
    "EltwiseParameter": "EltwiseOp operation 1 SUM, float* coeff 2, bool stable_prod_grad 3",
    "ELUParameter": "float alpha 1 1",
    "FlattenParameter": "int32 axis 1 1, int32 end_axis 2 -1",
    "InnerProductParameter": """uint32 num_output 1, bool bias_term 2 true,
        FillerParameter weight_filler 3, FillerParameter bias_filler 4, int32 axis 5 1,
        bool transpose 6""",
    "InputParameter": "BlobShape* shape 1",
    "LRNParameter": """uint32 local_size 1 5, float alpha 2 1, float beta 3 0.75,
        NormRegion norm_region 4 ACROSS_CHANNELS, float k 5 1, Engine engine 6""",
    "PoolingParameter": """PoolMethod pool 1 MAX, uint32 pad 4, uint32 pad_h 9, uint32 pad_w 10,
        uint32 kernel_size 2, uint32 kernel_h 5, uint32 kernel_w 6, uint32 stride 3 1,
        uint32 stride_h 7, uint32 stride_w 8, Engine engine 11, bool global_pooling 12,
        RoundMode round_mode 13 CEIL, bool ceil_mode 1013 true""",
    "PowerParameter": "float power 1 1, float scale 2 1, float shift 3 0",
    "PReLUParameter": "FillerParameter filler 1, bool channel_shared 2",
    "ReLUParameter": "float negative_slope 1, Engine engine 2",
    "ReshapeParameter": "BlobShape shape 1, int32 axis 2, int32 num_axes 3 -1",
    "ScaleParameter": """int32 axis 1 1, int32 num_axes 2 1, FillerParameter filler 3,
        bool bias_term 4, FillerParameter bias_filler 5""",
    "ShuffleChannelParameter": "uint32 group 1 1",
    "SigmoidParameter": "Engine engine 1",
    "SliceParameter": "uint32 slice_dim 1 1, uint32* slice_point 2, int32 axis 3 1",
    "SoftmaxParameter": "Engine engine 1, int32 axis 2 1",
    "TanHParameter": "Engine engine 1",
    # Layers of training: they are read so that they can be refused by name.
    "AccuracyParameter": "uint32 top_k 1, int32 axis 2, int32 ignore_label 3",
    "DataParameter": """string source 1, float scale 2, string mean_file 3, uint32 batch_size 4,
        uint32 crop_size 5, bool mirror 6, uint32 rand_skip 7, DB backend 8,
        bool force_encoded_color 9, uint32 prefetch 10""",
    "HDF5DataParameter": "string source 1, uint32 batch_size 2, bool shuffle 3",
    "ImageDataParameter": """string source 1, float scale 2, string mean_file 3,
        uint32 batch_size 4, uint32 crop_size 5, bool mirror 6, uint32 rand_skip 7,
        bool shuffle 8, uint32 new_height 9, uint32 new_width 10, bool is_color 11,
        string root_folder 12""",
    "LossParameter": """int32 ignore_label 1, bool normalize 2,
        NormalizationMode normalization 3""",
    "MemoryDataParameter": """uint32 batch_size 1, uint32 channels 2, uint32 height 3,
        uint32 width 4""",
    "TransformationParameter": """float scale 1, bool mirror 2, uint32 crop_size 3,
        string mean_file 4, float* mean_value 5, bool force_color 6, bool force_gray 7""",
}

# An enum belongs to the message before its dot. One without a dot belongs to the file.
ENUMS = {
    "Phase": "TRAIN 0, TEST 1",
    "Engine": "DEFAULT 0, CAFFE 1, CUDNN 2",
    "DataParameter.DB": "LEVELDB 0, LMDB 1",
    "EltwiseParameter.EltwiseOp": "PROD 0, SUM 1, MAX 2",
    "FillerParameter.VarianceNorm": "FAN_IN 0, FAN_OUT 1, AVERAGE 2",
    "LossParameter.NormalizationMode": "FULL 0, VALID 1, BATCH_SIZE 2, NONE 3",
    "LRNParameter.NormRegion": "ACROSS_CHANNELS 0, WITHIN_CHANNEL 1",
    "ParamSpec.DimCheckMode": "STRICT 0, PERMISSIVE 1",
    "V1LayerParameter.DimCheckMode": "STRICT 0, PERMISSIVE 1",
    "V1LayerParameter.LayerType": """NONE 0, ABSVAL 35, ACCURACY 1, ARGMAX 30, BNLL 2, CONCAT 3,
        CONTRASTIVE_LOSS 37, CONVOLUTION 4, DATA 5, DECONVOLUTION 39, DROPOUT 6, DUMMY_DATA 32,
        EUCLIDEAN_LOSS 7, ELTWISE 25, EXP 38, FLATTEN 8, HDF5_DATA 9, HDF5_OUTPUT 10,
        HINGE_LOSS 28, IM2COL 11, IMAGE_DATA 12, INFOGAIN_LOSS 13, INNER_PRODUCT 14, LRN 15,
        MEMORY_DATA 29, MULTINOMIAL_LOGISTIC_LOSS 16, MVN 34, POOLING 17, POWER 26, RELU 18,
        SIGMOID 19, SIGMOID_CROSS_ENTROPY_LOSS 27, SILENCE 36, SOFTMAX 20, SOFTMAX_LOSS 21,
        SPLIT 22, SLICE 33, TANH 23, WINDOW_DATA 24, THRESHOLD 31""",
    "PoolingParameter.PoolMethod": "MAX 0, AVE 1, STOCHASTIC 2",
    "PoolingParameter.RoundMode": "CEIL 0, FLOOR 1",
}

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "float", "int32", "int64", "string", "uint32")
}


def _entries(text: str) -> list[list[str]]:
    return [entry.split() for entry in text.split(",")]


def _add_enum(enums: Any, name: str, values: str) -> None:
    enum = enums.add(name=name)
    for value, number in _entries(values):
        enum.value.add(name=value, number=int(number))


def _add_field(message: Any, kind: str, name: str, number: str, default: str | None = None) -> None:
    repeated, kind = kind.endswith("*"), kind.removesuffix("*")
    field = message.field.add(name=name, number=int(number))
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        field.options.packed = repeated and kind == "int64"
    else:
        owner = f".{message.name}" if f"{message.name}.{kind}" in ENUMS else ""
        field.type_name = f".caffe{owner}.{kind}"
    if default is not None:
        field.default_value = default


def _file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for entry in _entries(fields):
            _add_field(message, *entry)
    messages = {message.name: message for message in file.message_type}
    for name, values in ENUMS.items():
        owner, _, own = name.rpartition(".")
        _add_enum(messages[owner].enum_type if owner else file.enum_type, own, values)
    return file


def _classes() -> dict[str, Any]:
    # A separate pool, because an installed Caffe has the same names in the default pool.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))
        for name in MESSAGES
    }


_CLASSES = _classes()
NetParameter = _CLASSES["NetParameter"]
LayerParameter = _CLASSES["LayerParameter"]
V1LayerParameter = _CLASSES["V1LayerParameter"]
LayerPlace = _CLASSES["LayerPlace"]
V1LayerPlace = _CLASSES["V1LayerPlace"]
BlobProto = _CLASSES["BlobProto"]
StoredNet = _CLASSES["StoredNet"]
StoredLayer = _CLASSES["StoredLayer"]
StoredV1Layer = _CLASSES["StoredV1Layer"]
TEST: int = 1
"""Number of the phase in which a network answers."""
